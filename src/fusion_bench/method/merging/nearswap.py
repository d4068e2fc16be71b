"""Takes over from another model what is close to the base already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Nearswap(TensorMethod):
    r"""$\theta = w\,\theta_1 + (1 - w)\,\theta_0$ with $w = \min(1, t / |\theta_0 - \theta_1|)$ for each entry.

    So every entry moves from the base towards the model by $t$ at most: $\theta_0 + \mathrm{clip}(\tau, -t, t)$, which
    is how it is computed. Entries closer than $t$ become the model's. Errors: other than one model.

    Source: Arcee's MergeKit, arXiv 2403.13257.
    """

    requirement = "hyperparameter search"
    source = "Arcee's MergeKit, arXiv 2403.13257"
    needs_base = True
    model_counts: ClassVar[tuple[int, int | None]] = (1, 1)
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {"t": 1000.0}, "equal": {"t": 1000.0}}

    t: float = hyper(0.001, "how far an entry may move, in the units of the weights", low=0.0)

    @property
    def pointwise(self) -> bool:
        return True

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        from fusion_bench.method.finite import require_finite

        # Clipping would make a finite number of infinity.
        delta = require_finite(slot, 0, next(slot.deltas))
        return delta.clamp_(-self.t, self.t).add_(slot.base)
