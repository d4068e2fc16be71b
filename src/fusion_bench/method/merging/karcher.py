"""The mean of several models on the sphere with their mean length, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod
from fusion_bench.method.weights import Weights, by_model, normalized

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Karcher(TensorMethod):
    r"""$\theta = m \sum_i w_i \|x_i\|$, $m$ the point of the unit sphere from which
    $m \leftarrow \exp_m\bigl(\sum_i w_i \log_m(x_i / \|x_i\|)\bigr)$ no longer moves; each tensor is one vector.

    $\log_m(u) = \frac{\theta}{\sin\theta}(u - \cos\theta\,m)$ with $\cos\theta = \langle u, m\rangle$, and
    $\exp_m(v) = \cos\|v\|\,m + \frac{\sin\|v\|}{\|v\|} v$. Begins at the normalised weighted mean. All iterations are
    done on the N x N inner products, so two passes suffice. Zero vectors have no direction and count in the mean
    length alone. Two models of equal weights: the same as `multislerp`. Errors: weights that sum to 0; directions of
    more than two models that cancel (two blend linearly).

    Source: Karcher mean, arXiv 2603.04972.
    """

    requirement = "hyperparameter search"
    source = "Karcher mean, arXiv 2603.04972"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": {}}

    weights: Weights = hyper(None, "by name ({cola: 0.7, mnli: 0.3}) or in pool order; null: all equal")
    of: Literal["models", "deltas"] = hyper("models", "average the models, or their task vectors about the base")
    iterations: int = hyper(10, "how many steps are made at most; 0 leaves the normalised mean", low=0)
    tolerance: float = hyper(1e-5, "the length of a step, as an angle, below which no more are made", low=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "needs_base", self.of == "deltas")

    def check(self, models: Sequence[str]) -> None:
        weights = by_model(self.weights, models)
        if sum(weights) == 0:
            raise ConfigError(
                f"method.weights={list(weights)}: the weights sum to 0 and cannot be normalized. Change a weight."
            )

    def passes(self, inputs: Inputs) -> int:
        return 2

    def workspace(self, name: str, inputs: Inputs) -> float:
        return len(inputs.models) + 6.0

    def survey(self, inputs: Inputs, scan: Scan) -> dict[str, tuple[float, ...]]:
        from fusion_bench.method import gram
        from fusion_bench.ops import spherical

        weights = normalized(by_model(self.weights, tuple(inputs.models)))
        found = {}
        for name, each in gram.tensor_grams(scan, gram.taken(self.of)).items():
            factors = spherical.karcher_mean(each, weights, self.iterations, self.tolerance)
            if factors is None:
                raise gram.refuse_cancelled("karcher", name)
            found[name] = factors
        return found

    def merge(self, slot: Slot, state: dict[str, tuple[float, ...]]) -> torch.Tensor:
        from fusion_bench.method import gram

        return gram.combine(slot, self.of, state[slot.name])
