"""The image encoders of OpenCLIP in their own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import CheckpointError
from fusion_bench.family.base import Advance
from fusion_bench.family.open_clip_names import MARKS, MODEL_TYPE, PREFIXES, prefix_of, recognised
from fusion_bench.family.ties import NONE, Ties
from fusion_bench.family.vision import Layouts, VisionTower

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint

__all__ = ["ACTIVATIONS", "MODEL_TYPE", "OpenClipVision"]

ACTIVATIONS = ("quick_gelu", "gelu")


class OpenClipVision(VisionTower, Layouts):
    """Vision transformers of CLIP as state dicts of ``visual``: q, k and v are one matrix, ``attn.in_proj_weight``.

    The module that is run has the names of the file, but that ``attn.in_proj`` is a linear layer (`checkpoint_names`
    tells). The activation stands in no tensor: config.json must name it (``hidden_act``), quick_gelu for the weights
    that OpenAI trained, gelu for most others.
    """

    name = "open_clip_vision"
    projected = True

    def arranged(self, checkpoint: Checkpoint) -> Checkpoint:
        if prefix_of(checkpoint) is None:
            wanted = ", ".join(MARKS)
            raise CheckpointError(
                f"{checkpoint.folder or 'the checkpoint'}: its config says model_type {MODEL_TYPE!r}, but it holds no "
                f"such tower. Looked for {wanted}, with one of the prefixes {', '.join(map(repr, PREFIXES))}."
            )
        return recognised(checkpoint, whole=True)

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
        from fusion_bench.family.loading import module_of
        from fusion_bench.family.open_clip_tower import tower

        checkpoint = self.arranged(checkpoint)
        given = checkpoint.config.get("hidden_act")
        if given not in ACTIVATIONS:
            raise CheckpointError(
                f"{checkpoint.folder or 'the checkpoint'}: its config gives "
                f"{'no hidden_act' if given is None else f'hidden_act {given!r}'}, which an OpenCLIP tower cannot be "
                f"run without. Accepted: {', '.join(ACTIVATIONS)} (quick_gelu for OpenAI's weights); write it into a "
                f'config.json beside the weights: {{"model_type": "{MODEL_TYPE}", "hidden_act": "quick_gelu"}}.'
            )
        return module_of(checkpoint, NONE, dtype, device, threads, advance, tower)

    def reload(
        self, module: torch.nn.Module, checkpoint: Checkpoint, threads: int = 1, advance: Advance | None = None
    ) -> None:
        from fusion_bench.family.loading import fill

        fill(module, self.arranged(checkpoint), NONE, threads, advance)

    def features(self, module: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """The class token after the last layer norm, projected into the joint space."""
        pooled: torch.Tensor = module(pixel_values)
        return pooled

    def image_size(self, config: Mapping[str, Any]) -> int:
        return int(config["image_size"])
