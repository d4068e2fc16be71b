"""What an image task pool keeps from one evaluation to the next: module, heads, image processors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import CheckpointError
from fusion_bench.family import family_of
from fusion_bench.family.vision import ImageClassifier, VisionTower
from fusion_bench.taskpool.image_clip import ClipFolder
from fusion_bench.taskpool.image_processor import ImageProcessor
from fusion_bench.taskpool.image_text_heads import TextHeads
from fusion_bench.taskpool.placement import device_of, dtype_of
from fusion_bench.taskpool.session import essential, weights_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.progress import Progress
    from fusion_bench.settings import Settings


@dataclass(frozen=True, slots=True)
class Live:
    """A checkpoint as a module, with what the module is. `digest`: of its tensors."""

    module: torch.nn.Module
    config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    digest: str


@dataclass(slots=True)
class ImageSession:
    """Holds one module, which is replaced when another kind is asked for."""

    _module: torch.nn.Module | None = None
    _shape: tuple[Any, ...] = ()
    _processors: dict[Path, ImageProcessor] = field(default_factory=dict)
    _heads: dict[Path, TextHeads] = field(default_factory=dict)

    def processor(self, folder: Path) -> ImageProcessor:
        """The image processor of a folder."""
        return self._processors.setdefault(folder, ImageProcessor(folder))

    def text_heads(self, source: ClipFolder) -> TextHeads:
        """The text tower of a folder."""
        if source.folder not in self._heads:
            self._heads[source.folder] = TextHeads(source)
        return self._heads[source.folder]

    def live(self, checkpoint: Checkpoint, settings: Settings, progress: Progress) -> Live:
        """The checkpoint as a module. The module of an earlier call is filled anew where names and shapes agree."""
        device, dtype = device_of(settings), dtype_of(settings)
        family = family_of(checkpoint.config)
        names = tuple((name, info.shape) for name, info in checkpoint.infos.items())
        shape = (essential(checkpoint.config), names, str(device), str(dtype))
        if self._module is not None and shape != self._shape:
            # Given up first: two models need not fit into memory.
            self._module = None
        total = sum(info.nbytes for info in checkpoint.infos.values())
        with progress.bar("loading the model", total, "B") as advance:
            if self._module is not None:
                family.reload(self._module, checkpoint, settings.workers, advance)
            else:
                self._module = family.load(checkpoint, dtype, device, settings.workers, advance)
                self._shape = shape
        return Live(self._module, checkpoint.config, device, dtype, weights_digest(self._module))


def heads_for(checkpoint: Checkpoint, heads: Mapping[str, Checkpoint] | None) -> Mapping[str, Checkpoint] | None:
    """The heads to choose from for a classifier that has none; None for one that has its own."""
    bare = not classifier_of(checkpoint.config).head_names(checkpoint.config, checkpoint.infos)
    return (heads or {}) if bare else None


def with_any_head(checkpoint: Checkpoint, heads: Mapping[str, Checkpoint] | None) -> Checkpoint:
    """A backbone under one of the heads, so that it runs; where there are none to choose from, as it is."""
    if not heads:
        return checkpoint
    from fusion_bench.checkpoint.with_head import WithHead

    return WithHead(checkpoint, heads[min(heads)])


def tower_of(config: Mapping[str, Any]) -> VisionTower:
    """The family of a vision tower; CheckpointError where a model with this config.json is none."""
    family = family_of(config)
    if not isinstance(family, VisionTower):
        hint = " A model with its own head is scored with taskpool.head=own." if _classifies(config) else ""
        raise CheckpointError(
            f"model_type {config.get('model_type')!r} is no vision tower that a zero-shot head fits on, such as "
            f"clip_vision_model.{hint} A whole CLIP becomes one with modelpool.part=vision."
        )
    return family


def classifier_of(config: Mapping[str, Any]) -> ImageClassifier:
    """The family of an image classifier; CheckpointError where a model with this config.json is none."""
    family = family_of(config)
    if not isinstance(family, ImageClassifier):
        raise CheckpointError(
            f"model_type {config.get('model_type')!r} is no image classifier with a head of its own, such as vit or "
            "resnet. A vision tower of CLIP is scored with taskpool.head=zero_shot."
        )
    return family


def _classifies(config: Mapping[str, Any]) -> bool:
    return isinstance(family_of(config), ImageClassifier)
