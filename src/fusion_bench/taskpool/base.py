"""The abstract task pool: what to measure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.progress import Progress
    from fusion_bench.settings import Settings


class TaskPool(ABC):
    """Tasks with their data and metrics. One pool evaluates many checkpoints and keeps its data between them."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What kind of pool it is: its key in the registry."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are evaluated, in report order."""

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, str]:
        """Each task with the key of its primary metric in the report."""

    @abstractmethod
    def check(self, tokenizers: Sequence[Path | str] = ()) -> None:
        """Raises one UserError with every problem that can be found before a model is loaded. Imports no torch.

        `tokenizers`: folders or Hub names to look for a tokenizer in, the likeliest first.
        """

    @abstractmethod
    def check_model(self, config: Mapping[str, Any]) -> None:
        """Raises CheckpointError where a model with this config.json cannot be evaluated here. Imports no torch."""

    @abstractmethod
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
        """The part of the report that this pool fills, ready for strict JSON, fractions from 0 to 1.

        `only`: some of the tasks; `predictions`: a folder for one file of answers a task; `heads`: the tasks' own heads
        by name, for a checkpoint without one. A task that fails is reported as ``{"error": message}`` and leaves the
        others alone.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a reader needs to judge the scores: data, split, prompts, decoding. For the report, ready for JSON."""
