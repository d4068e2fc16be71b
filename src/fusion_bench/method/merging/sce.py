"""Select the entries in which the models differ, weigh the models, erase the minority."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod

if TYPE_CHECKING:
    import torch

    from fusion_bench.method.trimming import Trim

State = tuple["Trim | None", Mapping[str, tuple[float, ...]]]
"""The cuts of the variances (None: all entries stay), and the weights of the models by tensor."""


@dataclass(frozen=True)
class Sce(TensorMethod):
    r"""$\theta = \theta_0 + \lambda \Delta$ with $\Delta = \sum_i w_i \hat\tau_i / \sum_i w_i$, tensor by tensor.

    *Select*: of the entries in which the task vectors $\tau_i$ differ keep the share `select_topk` of largest variance
    over the models, exactly $\lfloor k m \rfloor$ of m, of equal variances the lower flat index; 1 keeps all.
    *Calculate*: $w_i = \mathrm{mean}(\hat\tau_i^2)$ over the tensor, divided by their sum; equal weights where all
    entries are 0. *Erase*: both sums run over the models whose entry has the sign of $\sum_i \hat\tau_i$ (0 counts as
    positive).

    One model, or equal ones, have no variance: with `select_topk` below 1 the result is then the base. NaN and
    infinity are refused: a comparison would drop them.

    Source: FuseChat, arXiv 2408.07990.
    """

    requirement = "hyperparameter search"
    source = "FuseChat, arXiv 2408.07990"
    needs_base = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": {}}

    select_topk: float = hyper(1.0, "kept share of the entries that differ between the models", low=0.0, high=1.0)
    scaling_factor: float = hyper(1.0, "the factor λ on the merged task vector")

    def workspace(self, name: str, inputs: Inputs) -> float:
        return 16.0

    def passes(self, inputs: Inputs) -> int:
        return 2 if self.select_topk >= 1 else 5

    def survey(self, inputs: Inputs, scan: Scan) -> State:
        from fusion_bench.ops import sums

        trim = self._select(inputs, scan)

        def energies(slot: Slot) -> tuple[str, list[float]]:
            if trim is None:
                return slot.name, [sums.square(delta) for delta in _finite(slot)]
            chosen = _chosen(trim, slot, _spread(slot))
            return slot.name, [sums.square(delta.mul_(chosen)) for delta in slot.deltas]

        totals = {name: [0.0] * len(inputs.models) for name in inputs.alignment.floating}
        for name, found in scan(energies, "weighing the models"):
            totals[name] = [a + b for a, b in zip(totals[name], found, strict=True)]
        return trim, {name: _shares(found) for name, found in totals.items()}

    def _select(self, inputs: Inputs, scan: Scan) -> Trim | None:
        """The cuts of the variances of each tensor."""
        if self.select_topk >= 1:
            return None
        import torch

        from fusion_bench.method.trimming import Trim, tensor_cuts

        differing = dict.fromkeys(inputs.alignment.floating, 0)
        counts = scan(lambda slot: (slot.name, int(torch.count_nonzero(_spread(slot)))), "counting what differs")
        for name, count in counts:
            differing[name] += count
        keeps: dict[tuple[int, str], int | None] = {
            (0, name): int(self.select_topk * count) for name, count in differing.items()
        }
        return Trim(
            selection=tensor_cuts(inputs, scan, lambda slot: iter([(0, _spread(slot))]), keeps), per_tensor=True
        )

    def merge(self, slot: Slot, state: State) -> torch.Tensor:
        from fusion_bench.ops import linear, sign, sparsify

        trim, weights = state
        spread = None if trim is None else sparsify.Spread(slot.deltas)
        deltas = slot.deltas if spread is None else iter(spread)
        # The election and the weighted mean are those of TIES-Merging.
        votes = sign.collect(deltas, weights[slot.name], "mean", weighted_signs=False, count_weights=True)
        delta = sign.elect(votes, "positive")
        if trim is not None and spread is not None:
            delta.mul_(_chosen(trim, slot, spread.result()))
        return linear.shifted(slot.base, delta, self.scaling_factor)


def _finite(slot: Slot) -> Iterator[torch.Tensor]:
    from fusion_bench.method.finite import require_finite

    for index, delta in enumerate(slot.deltas):
        yield require_finite(slot, index, delta)


def _spread(slot: Slot) -> torch.Tensor:
    """The variances of a slice, times the squared number of models."""
    from fusion_bench.ops import sparsify

    spread = sparsify.Spread(_finite(slot))
    for _ in spread:
        pass
    return spread.result()


def _chosen(trim: Trim, slot: Slot, spread: torch.Tensor) -> torch.Tensor:
    """1 where the variance is selected, else 0; overwrites the variances."""
    import torch

    return torch.gt(trim.apply(slot, 0, spread), 0, out=spread)


def _shares(energies: list[float]) -> tuple[float, ...]:
    whole = sum(energies)
    return tuple(energy / whole if whole else 1 / len(energies) for energy in energies)
