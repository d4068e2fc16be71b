"""The kind of algorithm that looks at data before it merges."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from fusion_bench.errors import ConfigError
from fusion_bench.fitting import Fitted, Fitting, Use
from fusion_bench.method.base import Fused, Inputs, ModelFusionAlgorithm, TensorMethod

__all__ = ["Fitted", "FittedMethod", "Fitting"]


@dataclass(frozen=True)
class FittedMethod(ModelFusionAlgorithm):
    """An algorithm that learns numbers from the models and data, then merges by an ordinary method.

    `use`: what the data serve; `reads_labels`: whether right answers are looked at; `gradients`: whether gradients are
    taken, which needs memory for a model and its gradient beside the budget of the merge.
    """

    use: ClassVar[Use]
    reads_labels: ClassVar[bool] = False
    gradients: ClassVar[bool] = False

    @abstractmethod
    def fit(self, inputs: Inputs, fitting: Fitting) -> Fitted:
        """Looks at the models and the data. Raises ConfigError where a model has no data."""

    @abstractmethod
    def preview(self) -> TensorMethod:
        """A method of the kind that `fit` returns, with nothing learnt yet: for forecasts of memory and time."""

    @abstractmethod
    def looks_at(self, available: int) -> int:
        """How many of a task's examples are looked at; 0 where these hyperparameters need none."""

    def fuse(self, inputs: Inputs) -> Fused:
        raise ConfigError(
            f"method={self.key()} looks at data, and none was given. On the command line choose a taskpool that has "
            "data for the models; in Python give data=, a mapping from model name to TaskData."
        )


def require_data(method: FittedMethod, inputs: Inputs, fitting: Fitting) -> None:
    """ConfigError where a model has no data of its own."""
    absent = [name for name in inputs.models if name not in fitting.tasks]
    if absent:
        raise ConfigError(
            f"method={method.key()}: no data for {', '.join(absent)}. Models and tasks go by the same names; "
            f"there are data for {', '.join(fitting.tasks) or 'none'}. Choose models with modelpool.select."
        )
