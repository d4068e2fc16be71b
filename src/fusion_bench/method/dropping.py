"""What random dropping takes away of a task vector: how much the rest must be enlarged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fusion_bench.method.base import Scan, Slot

if TYPE_CHECKING:
    import torch

Ratios = Mapping[tuple[int, str], float]
Dropped = Callable[[Slot, int, "torch.Tensor"], "torch.Tensor"]
"""What is left of the delta of the model at a position; may overwrite the one it is given."""


def l1_ratios(scan: Scan, dropped: Dropped) -> Ratios:
    r"""$\|\tau_i\|_1 / \|m \odot \tau_i\|_1$ of each model and tensor; 1 where nothing is left."""
    from fusion_bench.ops import sums

    def norms(slot: Slot) -> tuple[str, list[tuple[float, float]]]:
        found = []
        for model, delta in enumerate(slot.deltas):
            whole = sums.magnitude(delta)
            found.append((whole, sums.magnitude(dropped(slot, model, delta))))
        return slot.name, found

    totals: dict[tuple[int, str], list[float]] = {}
    for name, contributions in scan(norms, "measuring what is dropped"):
        for model, (whole, kept) in enumerate(contributions):
            entry = totals.setdefault((model, name), [0.0, 0.0])
            entry[0] += whole
            entry[1] += kept
    return {key: whole / kept if kept else 1.0 for key, (whole, kept) in totals.items()}
