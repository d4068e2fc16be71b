"""Of each entry the largest change that any model made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Magmax(TensorMethod):
    r"""$\theta = \theta_0 + \lambda \tau$ with $\tau_j = \tau_{i^*j}$, $i^* = \arg\max_i |\tau_{ij}|$.

    $\tau_i = \theta_i - \theta_0$ are the task vectors; of equal magnitudes the later model's entry is taken, so the
    order of the models matters there. Tensors of any shape. One model and $\lambda = 1$ give that model. NaN and
    infinity are refused: a comparison would drop them.

    Source: MagMax, arXiv 2407.06322.
    """

    requirement = "hyperparameter search"
    source = "MagMax, arXiv 2407.06322"
    needs_base = True
    symmetric = False
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"scaling_factor": 1.0},
        "equal": {"scaling_factor": 1.0},
    }

    scaling_factor: float = hyper(0.5, "the factor λ on the selected changes")

    @property
    def pointwise(self) -> bool:
        return True

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        from fusion_bench.ops import linear, masks

        return linear.shifted(slot.base, masks.largest(_finite(slot)), self.scaling_factor)


def _finite(slot: Slot) -> Iterator[torch.Tensor]:
    from fusion_bench.method.finite import require_finite

    for index, delta in enumerate(slot.deltas):
        yield require_finite(slot, index, delta)
