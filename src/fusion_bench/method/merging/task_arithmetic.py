"""The base plus a multiple of the sum of the task vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TaskArithmetic(TensorMethod):
    r"""$\theta = \theta_0 + \lambda \sum_i (\theta_i - \theta_0)$.

    $\lambda = 0$ gives the base bit for bit; $\lambda = 1/N$ is the simple average. Adding and negating task vectors
    are the same formula: $\lambda > 0$ learns what the models learnt, $\lambda < 0$ forgets it (the base minus the task
    vectors, mirrored about the base), as in ``method=task_arithmetic method.scaling_factor=-1`` with one model.

    Source: Editing models with task arithmetic, arXiv 2212.04089.
    """

    requirement = "hyperparameter search"
    source = "Task arithmetic, arXiv 2212.04089"
    needs_base = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"scaling_factor": 1.0},
        "equal": {"scaling_factor": "1/N"},
    }

    scaling_factor: float = hyper(0.3, "the factor λ on the sum of the task vectors; any number, negative to forget")

    @property
    def pointwise(self) -> bool:
        return True

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        from fusion_bench.ops import linear

        return linear.shifted(slot.base, linear.total(slot.deltas), self.scaling_factor)
