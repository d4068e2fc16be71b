"""The base plus task vectors, each multiplied by a coefficient of its own in every tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod

if TYPE_CHECKING:
    import torch

    from fusion_bench.method.trimming import Trim


@dataclass(frozen=True)
class CoefficientMerge(TensorMethod):
    r"""$\theta^l = \theta_0^l + \sum_i \lambda_i^l \tau_i^l$ for every tensor $l$.

    With `kept` below 1 the task vectors are freed of redundancy and sign conflicts first, as TIES-Merging does: of each
    the share of largest magnitude over the model, and of these the entries that agree with the sign of their sum.
    """

    needs_base = True

    coefficients: Mapping[str, Any] = hyper({}, "tensor -> one coefficient a model, in pool order")
    others: tuple[float, ...] = hyper((), "the coefficients of tensors that are not named")
    kept: float = hyper(1.0, "kept share of the entries of each task vector", above=0.0, high=1.0)
    trim: Any = hyper(None, "thresholds that were found already")

    def row(self, name: str) -> Sequence[float]:
        """The coefficients of a tensor."""
        found: Sequence[float] = self.coefficients.get(name, self.others)
        return found

    def workspace(self, name: str, inputs: Inputs) -> float:
        return 9.0 if self.kept < 1 else 5.0

    def holds(self, inputs: Inputs) -> int:
        from fusion_bench.method.selection import held

        return held(inputs, len(inputs.models)) if self.kept < 1 and self.trim is None else 0

    def passes(self, inputs: Inputs) -> int:
        return 3 if self.kept < 1 else 1

    def survey(self, inputs: Inputs, scan: Scan) -> Trim | None:
        from fusion_bench.method.trimming import find_cuts

        if self.kept >= 1:
            return None
        return self.trim or find_cuts(inputs, scan, self.kept, "model", "exact", ())

    def merge(self, slot: Slot, state: Trim | None) -> torch.Tensor:
        return combined(slot.base, treated(slot, state), self.row(slot.name))


def treated(slot: Slot, trim: Trim | None) -> Iterator[torch.Tensor]:
    """The deltas of a slot in pool order, less what TIES-Merging takes away where `trim` is given."""
    if trim is None:
        yield from slot.deltas
        return
    from fusion_bench.ops import linear

    elected = linear.total(trim.apply(slot, index, delta) for index, delta in enumerate(slot.deltas)).sign_()
    for index, delta in enumerate(slot.deltas):
        kept = trim.apply(slot, index, delta)
        # Zero where the signs differ, where nothing was elected and where nothing is left.
        yield kept.mul_(kept.sign().mul_(elected).clamp_(min=0))


def combined(base: torch.Tensor, deltas: Iterable[torch.Tensor], row: Sequence[float]) -> torch.Tensor:
    """``base + sum(factor * delta)``; the deltas are overwritten. A factor of 0 leaves its delta out."""
    merged = base.clone()
    for factor, delta in zip(row, deltas, strict=True):
        if factor != 0:
            # Two roundings everywhere: a fused one would fall on other entries when the slices change.
            merged.add_(delta.mul_(factor))
    return merged
