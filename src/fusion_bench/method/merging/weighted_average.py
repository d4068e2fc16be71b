"""The weighted mean of the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Inputs, Slot, TensorMethod
from fusion_bench.method.weights import Weights, by_model, normalized

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightedAverage(TensorMethod):
    r"""$\theta = \sum_i w_i \theta_i$ over the models, with $\sum_i w_i = 1$ where `normalize` is set.

    Linear interpolation $(1-t)\,a + t\,b$ of two models is `weights=[1-t,t]`; between the base and one model it is
    `task_arithmetic` with $\lambda = t$. Negative weights are allowed. Errors: weights that sum to zero with
    `normalize`, a weight for a model that is not in the pool, a list of another length than the pool.

    Source: Fisher merging, section 2, arXiv 2111.09832.
    """

    requirement = "hyperparameter search"
    source = "Fisher merging, arXiv 2111.09832"

    weights: Weights = hyper(None, "by name ({cola: 0.7, mnli: 0.3}) or in pool order ([0.7,0.3]); null: all equal")
    normalize: bool = hyper(True, "divide the weights by their sum")

    def check(self, models: Sequence[str]) -> None:
        weights = by_model(self.weights, models)
        if self.normalize and sum(weights) == 0:
            shown = dict(zip(models, weights, strict=True))
            raise ConfigError(
                f"method.weights={shown}: the weights sum to 0 and cannot be normalized. "
                "Change a weight, or set method.normalize=false."
            )

    def survey(self, inputs: Inputs, scan: Any) -> tuple[float, ...]:
        weights = by_model(self.weights, tuple(inputs.models))
        return normalized(weights) if self.normalize else weights

    @property
    def pointwise(self) -> bool:
        return True

    def merge(self, slot: Slot, state: tuple[float, ...]) -> torch.Tensor:
        from fusion_bench.ops import linear

        return linear.weighted_sum(slot.models, state)
