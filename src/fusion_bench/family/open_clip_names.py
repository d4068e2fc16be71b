"""Vision towers in the names of OpenCLIP, told from their tensors alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.checkpoint.part import Part
from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint, TensorInfo

MODEL_TYPE: Final = "open_clip_vision"
# The tower by itself, inside an OpenCLIP model, inside a wrapper around such a model.
PREFIXES: Final = ("", "visual.", "model.visual.")
HEAD_WIDTH: Final = 64
MARKS: Final = ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_post.weight", "proj")
_BLOCK: Final = re.compile(r"transformer\.resblocks\.(\d+)\.")


def prefix_of(checkpoint: Checkpoint) -> str | None:
    """What stands before the names of the tower in a file; None where the file holds no such tower."""
    infos = checkpoint.infos
    return next((prefix for prefix in PREFIXES if all(prefix + mark in infos for mark in MARKS)), None)


def config_of(infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The config of a tower with these tensors, named as OpenCLIP names them without prefix.

    Everything but the activation follows from shapes; heads are 64 wide, as in every ViT of CLIP. CheckpointError where
    the shapes contradict each other.
    """
    conv, positions = infos["conv1.weight"].shape, infos["positional_embedding"].shape
    found = [int(match[1]) for name in infos if (match := _BLOCK.match(name))]
    feed = infos.get("transformer.resblocks.0.mlp.c_fc.weight")
    if len(conv) != 4 or len(positions) != 2 or feed is None or conv[0] != positions[1]:
        raise CheckpointError(
            f"the tower's shapes are not those of an OpenCLIP ViT: conv1.weight {list(conv)}, positional_embedding "
            f"{list(positions)}, {len(set(found))} blocks."
        )
    width, grid = conv[0], math.isqrt(positions[0] - 1)
    if grid * grid != positions[0] - 1 or (width > HEAD_WIDTH and width % HEAD_WIDTH):
        raise CheckpointError(
            f"the tower has {positions[0]} positions and the width {width}: expected one position for the class and "
            f"a square of patches, and a multiple of {HEAD_WIDTH}."
        )
    return {
        "model_type": MODEL_TYPE,
        "hidden_size": width,
        "intermediate_size": feed.shape[0],
        "num_hidden_layers": max(found) + 1,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "num_channels": conv[1],
        "patch_size": conv[2],
        "image_size": grid * conv[2],
        "projection_dim": infos["proj"].shape[1],
    }


def recognised(checkpoint: Checkpoint, whole: bool) -> Checkpoint:
    """`checkpoint` as a tower of OpenCLIP where it is one and no config.json calls it something else.

    `whole`: also out of a file that holds more, such as the side for texts, which is then left out.
    """
    if checkpoint.config.get("model_type") not in (None, MODEL_TYPE):
        return checkpoint
    prefix = prefix_of(checkpoint)
    if prefix is None:
        return checkpoint
    names = {name.removeprefix(prefix): name for name in checkpoint if name.startswith(prefix)}
    # Empty where there is no prefix: a tower that is saved so stands alone.
    rest = [name for name in checkpoint if not name.startswith(prefix)]
    if rest and not whole:
        return checkpoint
    infos = {name: checkpoint.info(stored) for name, stored in names.items()}
    config = {**config_of(infos), **checkpoint.config}
    facts = {"part": "vision", "left_out": len(rest)} if rest else {}
    same = not rest and prefix == "" and config == dict(checkpoint.config)
    return checkpoint if same else Part(checkpoint, names, config, facts)
