"""The task pool that counts parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.build import hyper
from fusion_bench.taskpool.base import TaskPool
from fusion_bench.taskpool.model_info import model_info

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.progress import Progress
    from fusion_bench.settings import Settings


@dataclass(frozen=True)
class DummyTaskPool(TaskPool):
    """Reports the model's size: any architecture, from the headers of its files, without building a module."""

    type: Literal["dummy"] = hyper("dummy", "the kind of task pool")

    @property
    def name(self) -> str:
        return self.type

    @property
    def tasks(self) -> tuple[str, ...]:
        return ()

    @property
    def metrics(self) -> dict[str, str]:
        return {}

    def check(self, tokenizers: Sequence[Path | str] = ()) -> None:
        return None

    def check_model(self, config: Mapping[str, Any]) -> None:
        return None

    def evaluate(
        self,
        checkpoint: Checkpoint,
        *,
        settings: Settings,
        tokenizers: Sequence[Path | str] = (),
        only: Sequence[str] | None = None,
        predictions: Path | None = None,
        progress: Progress | None = None,
        heads: Mapping[str, Checkpoint] | None = None,
    ) -> dict[str, Any]:
        return {"model_info": model_info(checkpoint)}

    def describe(self) -> dict[str, Any]:
        return {"type": self.type}
