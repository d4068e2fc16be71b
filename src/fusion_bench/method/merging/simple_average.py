"""The mean of the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.method.base import Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SimpleAverage(TensorMethod):
    r"""$\theta = \frac{1}{N} \sum_i \theta_i$ over the models; the base takes no part.

    Equals task arithmetic with $\lambda = 1/N$. Tensors of any shape; sums in float32 (float64 for float64 inputs).

    Source: Model soups, arXiv 2203.05482.
    """

    source = "Model soups, arXiv 2203.05482"

    @property
    def pointwise(self) -> bool:
        return True

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        from fusion_bench.ops import linear

        return linear.mean(slot.models, len(slot.model_names))
