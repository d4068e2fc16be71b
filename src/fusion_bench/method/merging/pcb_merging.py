"""Balance the competition of entries within each model and between the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod

if TYPE_CHECKING:
    import torch

    from fusion_bench.ops.competition import Scale

_TAIL = 1e-4


@dataclass(frozen=True)
class PcbMerging(TensorMethod):
    r"""$\theta = \theta_0 + \lambda\, \sum_i s_i \odot \mathrm{sign}(\tau_i)\, a_i \,/\, \sum_i s_i$.

    Each task vector is one vector over the whole model, of d entries. $a_i = |\tau_i|$ is clipped at its tails of
    $10^{-4}$, the order statistics number $\lfloor 10^{-4} d \rfloor$ and $\lfloor (1 - 10^{-4}) d - 1 \rfloor$ counted
    from 0. $\beta_i = e^{N \hat a_i^2} \tanh(\tau_i \sum_j \tau_j)$ balances the competition within a model
    ($\hat a$: a scaled to 0 … 1) with that between models. $s_i$ is $\beta_i$ scaled to 0 … 1 from its $(1 - r)$
    quantile on: smaller ones have no weight. Where no model has a weight the base stays.

    The order statistics are exact, found in streaming passes. Balances are float64, since one just above the floor
    decides between a weight and none. With $r d < 2$, or task vectors of one magnitude, all weights are 0.

    Source: PCB-Merging, arXiv 2410.02396.
    """

    requirement = "hyperparameter search"
    source = "PCB-Merging, arXiv 2410.02396"
    needs_base = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": None, "equal": None}

    ratio: float = hyper(0.1, "share of each task vector's entries that compete", low=0.0, high=1.0)
    scaling_factor: float = hyper(1.2, "the factor λ on the merged task vector")

    @property
    def pointwise(self) -> bool:
        return True

    def workspace(self, name: str, inputs: Inputs) -> float:
        return 18.0

    def holds(self, inputs: Inputs) -> int:
        from fusion_bench.method.selection import held

        return held(inputs, 3 * len(inputs.models))

    def passes(self, inputs: Inputs) -> int:
        return 5

    def operations(self, name: str, inputs: Inputs) -> float:
        # Exponentials and hyperbolic tangents in float64.
        return 20.0 * inputs.alignment.infos[name].numel * len(inputs.models)

    def survey(self, inputs: Inputs, scan: Scan) -> Sequence[Scale]:
        from fusion_bench.method.selection import over_model
        from fusion_bench.ops.competition import Scale

        models = range(len(inputs.models))
        entries = sum(inputs.alignment.infos[name].numel for name in inputs.alignment.floating)
        if entries == 0:
            return [Scale(0.0, 0.0)] * len(models)
        low, high = int(entries * _TAIL), max(0, int(entries * (1.0 - _TAIL) - 1.0))
        floor = min(entries - 1, int(entries * (1.0 - self.ratio)))

        def ranked(values: Any, first: int, second: int, of: Sequence[int]) -> list[tuple[float, float]]:
            """Two order statistics of each model's values, counted from the smallest."""
            keeps = {2 * model: entries - first for model in of} | {2 * model + 1: entries - second for model in of}
            cuts = over_model(inputs, scan, values, keeps).cuts
            return [(cuts[2 * model, ""].value, cuts[2 * model + 1, ""].value) for model in of]

        scales = [Scale(*bounds) for bounds in ranked(_magnitudes, low, high, models)]
        found = dict(enumerate(ranked(_Balances(scales, 1), floor, entries - 1, models)))
        # A floor of 0 means that it is not among the positive balances: then it is sought among the others.
        below = [model for model in models if found[model][0] == 0]
        if below:
            mirrored = ranked(_Balances(scales, -1), entries - 1 - floor, 0, below)
            for model, (bottom, top) in zip(below, mirrored, strict=True):
                found[model] = -bottom, found[model][1] or -top
        return [Scale(s.low, s.high, *found[model]) for model, s in enumerate(scales)]

    def merge(self, slot: Slot, state: Sequence[Scale]) -> torch.Tensor:
        from fusion_bench.ops import competition, linear
        from fusion_bench.ops.scratch import SCRATCH

        total = competition.total(slot.deltas)
        merged = competition.merge(slot.deltas, total, state, len(state))
        return linear.shifted(slot.base, SCRATCH.like("sum", slot.base).copy_(merged), self.scaling_factor)


@dataclass(frozen=True)
class _Balances:
    """The balances of one sign, positive, the others 0; each model's twice, for two order statistics."""

    scales: Sequence[Scale]
    sign: int

    def __call__(self, slot: Slot) -> Iterator[tuple[int, torch.Tensor]]:
        from fusion_bench.ops import competition

        total = competition.total(slot.deltas)
        for model, delta in enumerate(slot.deltas):
            balances, _ = competition.balance(delta, total, self.scales[model], len(self.scales))
            yield from _two(model, balances.mul_(self.sign).clamp_(min=0))


def _magnitudes(slot: Slot) -> Iterator[tuple[int, torch.Tensor]]:
    from fusion_bench.method.trimming import magnitudes

    for model, values in magnitudes(slot):
        yield from _two(model, values)


def _two(model: int, values: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    yield 2 * model, values
    yield 2 * model + 1, values
