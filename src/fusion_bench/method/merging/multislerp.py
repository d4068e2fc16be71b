"""The weighted mean direction of several models with their mean length, tensor by tensor."""

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
class Multislerp(TensorMethod):
    r"""$\theta = \frac{m}{\|m\|} \sum_i w_i \|x_i\|$ with $m = \sum_i w_i \frac{x_i}{\|x_i\|}$ and $\sum_i w_i = 1$,
    each tensor as one vector; $x_i$ are the models, or their task vectors with the base added at the end.

    As it is usually told, the directions $u_i$ are projected on the tangent space at $\hat m = m/\|m\|$, averaged and
    mapped back to the sphere. The average of the projections $\sum_i w_i (u_i - \langle u_i, \hat m\rangle \hat m)$ is
    $m - \langle m, \hat m\rangle \hat m = 0$, so that step changes nothing and is left out; with the logarithm in the
    place of the projection it is the Karcher mean (`karcher`). A zero vector has no direction and the length 0.
    Two passes. Errors: weights that sum to 0; directions of more than two models that cancel (two blend linearly).

    Source: Arcee's MergeKit, arXiv 2403.13257.
    """

    requirement = "hyperparameter search"
    source = "Arcee's MergeKit, arXiv 2403.13257"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": {}}

    weights: Weights = hyper(None, "by name ({cola: 0.7, mnli: 0.3}) or in pool order; null: all equal")
    of: Literal["models", "deltas"] = hyper("models", "average the models, or their task vectors about the base")

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
            factors = spherical.chord_mean(each, weights)
            if factors is None:
                raise gram.refuse_cancelled("multislerp", name)
            found[name] = factors
        return found

    def merge(self, slot: Slot, state: dict[str, tuple[float, ...]]) -> torch.Tensor:
        from fusion_bench.method import gram

        return gram.combine(slot, self.of, state[slot.name])
