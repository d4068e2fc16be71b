"""Methods around another method: it merges first, then the merge is corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Inputs, TensorMethod, adopt

if TYPE_CHECKING:
    from fusion_bench.checkpoint.align import Alignment


@dataclass(frozen=True)
class MergeWrapper(TensorMethod):
    """A method that corrects what `inner` merged. `inner` must give one model, not one for each task."""

    needs_base = True

    inner: TensorMethod = hyper("task_arithmetic", "the method whose merge is corrected")

    def __post_init__(self) -> None:
        super().__post_init__()
        adopt(self, self.inner, "model_counts")

    def holds(self, inputs: Inputs) -> int:
        return self.inner.holds(inputs)

    def check(self, models: Sequence[str]) -> None:
        if self.inner.per_task:
            raise ConfigError(
                f"method.inner={self.inner.key()}: gives one model for each task, so there is no single merge for "
                f"method={self.key()} to correct. Take an inner method that gives one model."
            )
        self.inner.check(models)

    def check_tensors(self, alignment: Alignment) -> None:
        self.inner.check_tensors(alignment)
