"""The sum of all task vectors, masked for each task to the entries that matter to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod
from fusion_bench.method.task_masks import MaskScale, mask_scales

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@dataclass(frozen=True)
class TallMask(TensorMethod):
    r"""$\theta^{(i)} = \theta_0 + \lambda\, m_i \odot \tau_{mt}$ for the task of model i.

    $\tau_{mt} = \sum_i \tau_i$ and $m_i = [\,|\tau_i| > \lambda_t |\tau_{mt} - \tau_i|\,]$: one bit an entry and task
    beside the sum. The paper chooses $\lambda_t$ in 0.2 … 0.6 for each task on validation data. The result is one
    checkpoint for each task. N equal models have empty masks where $\lambda_t (N - 1) \ge 1$, and the base is left.

    Errors: a scale for a model that is not in the pool, a list of another length than the pool.

    Source: TALL-masks, arXiv 2405.07813.
    """

    requirement = "the task of each input, hyperparameter search"
    source = "TALL-masks, arXiv 2405.07813"
    needs_base = True
    per_task = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {},
        "equal": {"mask_scale": 0.3, "scaling_factor": "1/N"},
    }

    mask_scale: MaskScale = hyper(
        0.6, "λ_t, larger for sparser masks: one for all, by name ({cola: 0.4, …}) or in pool order", low=0.0
    )
    scaling_factor: float = hyper(1.0, "the factor λ on the masked sum")

    @property
    def pointwise(self) -> bool:
        return True

    def workspace(self, name: str, inputs: Inputs) -> float:
        return 10.0

    def check(self, models: Sequence[str]) -> None:
        mask_scales(self.mask_scale, models)

    def survey(self, inputs: Inputs, scan: Scan) -> dict[str, float]:
        names = tuple(inputs.models)
        return dict(zip(names, mask_scales(self.mask_scale, names), strict=True))

    def merge(self, slot: Slot, state: dict[str, float]) -> torch.Tensor:
        from fusion_bench.ops import linear, masks
        from fusion_bench.ops.scratch import SCRATCH

        assert slot.task is not None, "one result a task"
        own: list[torch.Tensor] = []

        def read() -> Iterator[torch.Tensor]:
            for name, delta in zip(slot.model_names, slot.deltas, strict=True):
                if name == slot.task:
                    own.append(SCRATCH.like("own", delta).copy_(delta))
                yield delta

        total = linear.total(read())
        delta = total.mul_(masks.matters(own[0], total, state[slot.task]))
        return linear.shifted(slot.base, delta, self.scaling_factor)
