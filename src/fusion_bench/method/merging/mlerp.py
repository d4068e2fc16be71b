"""The mean of the models, stretched to the length of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Mlerp(TensorMethod):
    r"""$\theta = \frac{\bar\theta}{\|\bar\theta\|}\, n^*$, $\bar\theta$ the mean of the models,
    $n^* = \max_i \|\theta_i\|$ or the mean of the norms.

    One factor for the whole model, which keeps the proportions between tensors, or one a tensor (`scope`). Averaging
    shortens vectors that differ; this undoes it. For two models of equal norms it is SLERP at ½. A mean that is zero,
    or what rounding leaves of zero, stays as it is. The base takes no part. Two passes.

    Source: MLERP, arXiv 2312.01026.
    """

    source = "MLERP, arXiv 2312.01026"

    scope: Literal["model", "tensor"] = hyper("model", "one factor for the model, or one for each tensor")
    norm: Literal["max", "mean"] = hyper("max", "the length that results: the largest of the models', or their mean")

    @property
    def pointwise(self) -> bool:
        return self.scope == "model"

    def passes(self, inputs: Inputs) -> int:
        return 2

    def workspace(self, name: str, inputs: Inputs) -> float:
        return len(inputs.models) + 6.0

    def survey(self, inputs: Inputs, scan: Scan) -> dict[str, float]:
        from fusion_bench.method.gram import mean_grams, taken
        from fusion_bench.ops import spherical

        grams = mean_grams(scan, taken("models"), len(inputs.models), self.scope == "model")
        return {name: spherical.norm_factor(gram, self.norm == "max") for name, gram in grams.items()}

    def merge(self, slot: Slot, state: dict[str, float]) -> torch.Tensor:
        from fusion_bench.ops import linear

        factor = state["" if self.scope == "model" else slot.name]
        return linear.mean(slot.models, len(slot.model_names)).mul_(factor)
