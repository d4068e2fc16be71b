"""Image classifiers of transformers: a backbone with one linear head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.checkpoint.part import Part
from fusion_bench.checkpoint.with_head import LABELS
from fusion_bench.errors import CheckpointError
from fusion_bench.family.base import Advance
from fusion_bench.family.ties import NONE, Ties
from fusion_bench.family.vision import ImageClassifier, Layouts

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint, TensorInfo

MODEL_TYPES: Final = frozenset({
    "beit", "bit", "convnext", "convnextv2", "deit", "dinov2", "dinov2_with_registers", "efficientnet", "focalnet",
    "hiera", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt", "pvt_v2",
    "regnet", "resnet", "segformer", "swiftformer", "swin", "swinv2", "vit", "vit_msn",
})  # fmt: skip
# The model_type is what backbone tensors of a classifier begin with; files of backbones alone lack it.
_PREFIXED: Final = frozenset({
    "beit", "convnext", "convnextv2", "deit", "dinov2", "dinov2_with_registers", "regnet", "resnet", "swin", "swinv2",
    "vit",
})  # fmt: skip
# Of backbones alone: trained along with them, and read by no classifier.
_POOLER: Final = frozenset({"pooler.dense.weight", "pooler.dense.bias"})
# DeiT with a teacher and LeViT have two heads, whose scores are averaged; SwiftFormer's are called so.
_HEAD: Final = re.compile(r"(classifier|cls_classifier|distillation_classifier|classifier_distill|head|dist_head)\.")


class ImageClassification(ImageClassifier, Layouts):
    """What AutoModelForImageClassification loads: transformers names the tensors of files anew, and back on writing.

    Running statistics of batch norms are tensors like any other: averaging models averages them. Their counter of
    batches is an integer, so it is copied from the base; evaluation does not read it.
    """

    name = "image_classifier"

    def head_names(self, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> frozenset[str]:
        return frozenset(name for name in infos if _HEAD.match(name))

    def arranged(self, checkpoint: Checkpoint) -> Checkpoint:
        """Backbones saved alone go by the names that they have inside a classifier."""
        kind = str(checkpoint.config.get("model_type"))
        if kind not in _PREFIXED or any(name.startswith(f"{kind}.") or _HEAD.match(name) for name in checkpoint):
            return checkpoint
        names = {f"{kind}.{name}": name for name in checkpoint if name not in _POOLER}
        config = {key: value for key, value in checkpoint.config.items() if key not in LABELS}
        return Part(checkpoint, names, config, {"part": "the backbone"})

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
        from fusion_bench.family.loading import module_of, of_mapping

        if not self.head_names(checkpoint.config, checkpoint.infos):
            raise CheckpointError(
                f"{checkpoint.folder or 'the checkpoint'}: has no classification head (modelpool.own_heads=true "
                "leaves heads out). Put the head of a task onto it before it is run: pool.heads[TASK]."
            )
        build = of_mapping("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING")
        return module_of(checkpoint, NONE, dtype, device, threads, advance, build)

    def reload(
        self, module: torch.nn.Module, checkpoint: Checkpoint, threads: int = 1, advance: Advance | None = None
    ) -> None:
        from fusion_bench.family.loading import fill

        fill(module, checkpoint, NONE, threads, advance)

    def logits(self, module: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = module(pixel_values=pixel_values).logits
        return scores

    def image_size(self, config: Mapping[str, Any]) -> int | None:
        given = config.get("image_size")
        return int(given[0] if isinstance(given, list | tuple) else given) if given else None
