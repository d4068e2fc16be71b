"""The mean of the models, weighted at each entry by how much it matters to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FisherWeighted(TensorMethod):
    r"""$\theta = \sum_i \lambda_i F_i \theta_i / \sum_i \lambda_i F_i$ where `names` says so, the plain mean elsewhere.

    Statistics are read slice by slice, as the models are.
    """

    source = "Fisher merging, arXiv 2111.09832"

    statistics: Mapping[str, Any] = hyper({}, "the diagonal Fisher of each model")
    names: Any = hyper(frozenset(), "the tensors that are weighted")
    factors: tuple[float, ...] = hyper((), "λ of each model, in pool order")
    floor: float = hyper(1e-6, "what keeps F above 0", low=0.0)
    mode: Literal["add", "max"] = hyper("add", "whether the floor is added to F or bounds it from below")

    def holds(self, inputs: Inputs) -> int:
        return sum(found.held for found in self.statistics.values())

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        from fusion_bench.ops import fisher, linear

        if slot.name not in self.names or len(slot.model_names) == 1:
            return linear.mean(slot.models, len(slot.model_names))
        found = (self.statistics[name].read(slot.name, slot.start, slot.stop) for name in slot.model_names)
        return fisher.weighted_mean(slot.models, found, self.factors, self.floor, self.mode)
