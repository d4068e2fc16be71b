"""Spherical interpolation by weights: of models or task vectors; of tensors, rows or columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot, TensorMethod
from fusion_bench.method.weights import Weights, by_model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Nuslerp(TensorMethod):
    r"""$\frac{\sin((1-t)\varphi)}{\sin\varphi}\,a + \frac{\sin(t\varphi)}{\sin\varphi}\,b$ with $t = w_1/(w_0 + w_1)$
    of two models, or $\theta_0$ plus that of their task vectors; $\varphi$ is the angle between $a$ and $b$.

    The vectors are whole tensors, or each row or column for itself (`by`): a row is all that has one first index, a
    column all that differs in it alone; a tensor of one dimension is one row. Where a vector is zero or
    $|\cos\varphi|$ exceeds `linear_above` the result is linear, as in `slerp`; mergekit has no such bound
    (``linear_above=1``). Rows take one pass, the others two. Errors: other than two models,
    weights that sum to 0, task vectors without a base.

    Source: Arcee's MergeKit, arXiv 2403.13257.
    """

    requirement = "hyperparameter search"
    source = "Arcee's MergeKit, arXiv 2403.13257"
    model_counts: ClassVar[tuple[int, int | None]] = (2, 2)
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": None, "equal": {}}

    weights: Weights = hyper(None, "by name ({cola: 0.7, mnli: 0.3}) or in pool order ([0.7,0.3]); null: both equal")
    of: Literal["models", "deltas"] = hyper("models", "interpolate the models, or their task vectors about the base")
    by: Literal["tensor", "row", "column"] = hyper("tensor", "what is one vector")
    linear_above: float = hyper(0.9995, "cosine above which vectors are blended linearly", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "needs_base", self.of == "deltas")

    def check(self, models: Sequence[str]) -> None:
        weights = by_model(self.weights, models)
        if sum(weights) == 0:
            raise ConfigError(
                f"method.weights={list(weights)}: the weights sum to 0, and t = w1/(w0+w1) has no value. Change one."
            )

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        if self.by == "tensor":
            return "element"
        return "row" if len(inputs.alignment.infos[name].shape) < 3 else "tensor"

    def workspace(self, name: str, inputs: Inputs) -> float:
        return 10.0

    def passes(self, inputs: Inputs) -> int:
        return 1 if self.by == "row" else 2

    def survey(self, inputs: Inputs, scan: Scan) -> tuple[float, dict[str, torch.Tensor]]:
        from fusion_bench.method import gram
        from fusion_bench.ops import spherical

        first, second = by_model(self.weights, tuple(inputs.models))
        t = second / (first + second)
        if self.by == "row":
            return t, {}
        take = gram.taken(self.of)
        if self.by == "tensor":
            found = gram.tensor_grams(scan, take)
            return t, {name: spherical.slerp(each, t, self.linear_above) for name, each in found.items()}
        infos = inputs.alignment.infos
        tables = [name for name in inputs.alignment.floating if len(infos[name].shape) == 2]
        grams = gram.column_grams(inputs, scan, take, tables)
        return t, {name: spherical.slerp(each, t, self.linear_above) for name, each in grams}

    def merge(self, slot: Slot, state: tuple[float, dict[str, torch.Tensor]]) -> torch.Tensor:
        from fusion_bench.method import gram
        from fusion_bench.ops import spherical

        t, known = state
        if self.by == "tensor":
            return gram.combine(slot, self.of, known[slot.name].tolist())
        if slot.name in known:
            return gram.apply_columns(slot, self.of, gram.hold(slot, gram.taken(self.of)), known[slot.name])
        return gram.combine_pieces(slot, self.of, lambda each: spherical.slerp(each, t, self.linear_above), self._by)

    @property
    def _by(self) -> Literal["row", "column"]:
        return "column" if self.by == "column" else "row"
