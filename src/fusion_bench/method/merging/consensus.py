"""The sum of the task vectors where several tasks need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod
from fusion_bench.method.task_masks import MaskScale, mask_scales

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Consensus(TensorMethod):
    r"""$\theta = \theta_0 + \lambda\, [\sum_i m_i \ge k] \odot \tau_{mt}$, Consensus Task Arithmetic.

    $\tau_{mt} = \sum_i \tau_i$, and $m_i = [\,|\tau_i| > \lambda_t |\tau_{mt} - \tau_i|\,]$ are the TALL masks. With
    k = 2 entries that one task alone uses are dropped; k = 0 is task arithmetic, k above the number of models gives
    the base. N equal models have empty masks where $\lambda_t (N - 1) \ge 1$.

    Errors: a scale for a model that is not in the pool, a list of another length than the pool.

    Source: TALL-masks, arXiv 2405.07813.
    """

    requirement = "hyperparameter search"
    source = "TALL-masks, arXiv 2405.07813"
    needs_base = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"k": 1, "scaling_factor": 1.0},
        "equal": {"mask_scale": 0.3, "scaling_factor": "1/N"},
    }

    k: int = hyper(2, "how many tasks must need an entry", low=0)
    mask_scale: MaskScale = hyper(
        0.6, "λ_t, larger for sparser masks: one for all, by name ({cola: 0.4, …}) or in pool order", low=0.0
    )
    scaling_factor: float = hyper(0.3, "the factor λ on the masked sum of the task vectors")

    @property
    def pointwise(self) -> bool:
        return True

    def passes(self, inputs: Inputs) -> int:
        return 2 if self.k > 0 else 1

    def check(self, models: Sequence[str]) -> None:
        mask_scales(self.mask_scale, models)

    def survey(self, inputs: Inputs, scan: Scan) -> tuple[float, ...]:
        return mask_scales(self.mask_scale, tuple(inputs.models))

    def merge(self, slot: Slot, state: tuple[float, ...]) -> torch.Tensor:
        from fusion_bench.ops import linear, masks

        total = linear.total(slot.deltas)
        if self.k > 0:
            total = masks.consensus(slot.deltas, total, state, self.k)
        return linear.shifted(slot.base, total, self.scaling_factor)

    def remarks(self, inputs: Inputs, state: tuple[float, ...]) -> list[str]:
        count = len(inputs.models)
        return [f"k={self.k} of {count} models never agree: the result is the base"] if self.k > count else []
