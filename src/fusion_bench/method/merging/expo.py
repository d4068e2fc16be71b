"""Goes on in the direction in which a model left its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Expo(TensorMethod):
    r"""$\theta = \theta_1 + \beta (\theta_1 - \theta_0)$: extrapolation beyond the fine-tuned model.

    $\beta = 0$ gives the model, $-1$ the base. Of several models the mean is extrapolated. The paper takes an aligned
    model and the one it was trained from by preference optimisation; any base does.

    Source: ExPO, arXiv 2404.16792.
    """

    requirement = "hyperparameter search"
    source = "ExPO, arXiv 2404.16792"
    needs_base = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {"beta": 0.0}, "equal": {"beta": 0.0}}

    beta: float = hyper(0.3, "how far beyond the model, in lengths of the task vector; any number")

    @property
    def pointwise(self) -> bool:
        return True

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        from fusion_bench.ops import changes, linear

        return changes.extrapolated(slot.base, linear.mean(slot.models, len(slot.model_names)), self.beta)
