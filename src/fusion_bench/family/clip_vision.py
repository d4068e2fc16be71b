"""The image encoders of CLIP and SigLIP, as transformers builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.checkpoint.part import Part
from fusion_bench.errors import CheckpointError
from fusion_bench.family.base import Advance
from fusion_bench.family.ties import NONE, Ties
from fusion_bench.family.vision import Layouts, VisionTower

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint

# model_type -> the class of transformers.
TOWERS: Final[Mapping[str, str]] = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}
# model_type of a model of two towers -> that of its vision part.
FULL: Final[Mapping[str, str]] = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
# What the names carry in full models, and in towers that transformers 4 saved.
PREFIX: Final = "vision_model."
_POSITIONS: Final = "embeddings.position_ids"


class ClipVision(VisionTower, Layouts):
    """What CLIPVisionModel and SiglipVisionModel load, under the names of transformers 5: without ``vision_model.``."""

    name = "clip_vision"
    projected = False
    # A buffer that older files keep: 0, 1, 2, ...
    unread = frozenset({_POSITIONS, PREFIX + _POSITIONS})

    def arranged(self, checkpoint: Checkpoint) -> Checkpoint:
        names = _shown(checkpoint)
        plain = all(new == old for new, old in names.items()) and len(names) == len(checkpoint)
        return checkpoint if plain else Part(checkpoint, names)

    def aliases(self, config: Mapping[str, Any]) -> Ties:
        return NONE

    def load(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        threads: int = 1,
        advance: Advance | None = None,
    ) -> torch.nn.Module:
        from fusion_bench.family.loading import module_of, of_transformers

        build = of_transformers(TOWERS[str(checkpoint.config["model_type"])])
        return module_of(self.arranged(checkpoint), NONE, dtype, device, threads, advance, build)

    def reload(
        self, module: torch.nn.Module, checkpoint: Checkpoint, threads: int = 1, advance: Advance | None = None
    ) -> None:
        from fusion_bench.family.loading import fill

        fill(module, self.arranged(checkpoint), NONE, threads, advance)

    def features(self, module: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """CLIP: the class token after the last layer norm. SigLIP: the output of the attention that pools."""
        pooled: torch.Tensor | None = module(pixel_values=pixel_values).pooler_output
        if pooled is None:
            raise CheckpointError("the tower has no pooled output (vision_use_head: false), so it has no features.")
        return pooled

    def image_size(self, config: Mapping[str, Any]) -> int:
        return int(config.get("image_size", 224))


def vision_part(checkpoint: Checkpoint) -> Checkpoint:
    """The vision tower of a model of two towers: what is read, without the projection into the joint space.

    CheckpointError where the file holds no tower.
    """
    kind = str(checkpoint.config["model_type"])
    names = {name.removeprefix(PREFIX): name for name in checkpoint if name.startswith(PREFIX)}
    names.pop(_POSITIONS, None)
    if not names:
        raise CheckpointError(
            f"{checkpoint.folder or 'the checkpoint'}: its config.json says model_type {kind!r}, but no tensor is "
            f"called {PREFIX}..., so it has no vision part."
        )
    # As transformers reads them: what old files repeat under the second key wins.
    given = {**(checkpoint.config.get("vision_config") or {}), **(checkpoint.config.get("vision_config_dict") or {})}
    return Part(checkpoint, names, {**given, "model_type": FULL[kind]}, {"part": "vision"})


def _shown(checkpoint: Checkpoint) -> dict[str, str]:
    """Name in the layout without prefix -> name in the file, for all that is read."""
    names = {name.removeprefix(PREFIX): name for name in checkpoint}
    if len(names) != len(checkpoint):
        raise CheckpointError(
            f"{checkpoint.folder or 'the checkpoint'}: holds tensors with and without the prefix {PREFIX!r} under "
            "otherwise equal names: it is not clear which are the tower's."
        )
    names.pop(_POSITIONS, None)
    return names
