"""Adds what one model changed alone, averages what several changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ram(TensorMethod):
    r"""$\theta = \theta_0 + \frac{1}{|C|}\sum_{i \in C} \tau_i$ for each entry, $C = \{i : |\tau_i| > \epsilon\}$ the
    models that changed it.

    A change that one model made is kept whole, where a plain mean would divide it by N; shared changes are averaged.
    Entries that nobody changed stay the base's.

    Source: RAM, arXiv 2601.13572.
    """

    source = "RAM, arXiv 2601.13572"
    needs_base = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"threshold": 0.0},
        "equal": {"threshold": 0.0},
    }

    threshold: float = hyper(1e-5, "a change of at most this counts as none", low=0.0)

    @property
    def pointwise(self) -> bool:
        return True

    def workspace(self, name: str, inputs: Inputs) -> float:
        return 10.0

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        from fusion_bench.ops.changes import mean_of_changes

        return mean_of_changes(slot.deltas, self.threshold).add_(slot.base)
