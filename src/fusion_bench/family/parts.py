"""Which part of a model is fused, under which names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint

PartName = Literal["vision"] | None


def part_of(checkpoint: Checkpoint, part: PartName) -> Checkpoint:
    """`checkpoint`, or its vision tower, under the names of the one layout of its family; lazy.

    CheckpointError where a vision tower is asked for and there is none.
    """
    from fusion_bench.family import family_of, open_clip_names
    from fusion_bench.family.clip_vision import FULL, vision_part
    from fusion_bench.family.vision import Layouts, VisionTower

    if part == "vision" and checkpoint.config.get("model_type") in FULL:
        return vision_part(checkpoint)
    checkpoint = open_clip_names.recognised(checkpoint, whole=part == "vision")
    family = family_of(checkpoint.config)
    if part == "vision" and not isinstance(family, VisionTower):
        kind = checkpoint.config.get("model_type")
        raise CheckpointError(
            f"{checkpoint.folder or 'the checkpoint'}: modelpool.part=vision asks for a vision tower, and this model "
            f"({f'model_type {kind!r}' if kind else 'no config.json'}) has none. With part=null it is fused whole."
        )
    return family.arranged(checkpoint) if isinstance(family, Layouts) else checkpoint


def check_same_kind(model: Checkpoint, base: Callable[[], Checkpoint]) -> None:
    """CheckpointError, the same for all such models, where one of `model` and the base is a full CLIP, one a tower.

    The base is opened only for models of which it could be said.
    """
    from fusion_bench.family.clip_vision import FULL, TOWERS

    if model.config.get("model_type") not in FULL.keys() | TOWERS.keys():
        return
    kinds = [str(checkpoint.config.get("model_type")) for checkpoint in (model, base())]
    if sorted(kind in FULL for kind in kinds) == [False, True] and any(kind in TOWERS for kind in kinds):
        what = {True: "a full model, of images and texts", False: "a vision tower alone"}
        raise CheckpointError(
            f"{what[kinds[0] in FULL]} (model_type {kinds[0]!r}), over a base that is {what[kinds[1] in FULL]} "
            f"({kinds[1]!r}). Give modelpool.part=vision: then of every full model only its tower is fused."
        )
