"""What families of image models answer beyond loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.family.base import ModelFamily

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint, TensorInfo


class VisionTower(ModelFamily):
    """Image encoders that a projection or a zero-shot head is put on."""

    # Whether the tower's own projection into the joint space of images and texts is part of its features.
    projected: ClassVar[bool]

    @abstractmethod
    def features(self, module: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """The pooled output of the tower, rows x width, not normalised; differentiable.

        `pixel_values`: rows x channels x height x width, normalised as the image processor of the model does, of the
        module's dtype, on its device.
        """

    @abstractmethod
    def image_size(self, config: Mapping[str, Any]) -> int:
        """Height, which is also the width, of the images that the tower takes, in pixels. Reads only the mapping."""


class Headed(ABC):
    """Families whose models end in a head that belongs to one task."""

    @abstractmethod
    def head_names(self, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> frozenset[str]:
        """The tensors of the head, by the names in the file; empty where the file has none. Reads names only."""


class ImageClassifier(ModelFamily, Headed):
    """Models that give each image a score for every class."""

    @abstractmethod
    def logits(self, module: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """The scores, rows x classes, before the softmax; differentiable. `pixel_values` as for `VisionTower`."""

    @abstractmethod
    def image_size(self, config: Mapping[str, Any]) -> int | None:
        """Height, which is also the width, in pixels; None where the architecture takes any. Reads only the mapping."""


class Layouts(ABC):
    """Families whose files come with names of several layouts."""

    @abstractmethod
    def arranged(self, checkpoint: Checkpoint) -> Checkpoint:
        """`checkpoint` under the names of the one layout that is fused, run and written; lazy, reads no values."""
