"""Task pools that also have data to fit on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import ConfigError
from fusion_bench.fitting import Protocol, TaskData, Use
from fusion_bench.taskpool.base import TaskPool

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.progress import Progress
    from fusion_bench.settings import Settings


def split_of(use: Use, protocol: Protocol, reported: str, asked: str | None, splits: Sequence[str]) -> str:
    """The split that is looked at.

    For `use` ``train`` the training split; for ``adapt`` and ``select`` one that is not reported: ``validation`` where
    `splits` has it, else ``train``; with `protocol` ``paper`` the reported one. `asked` comes first. ConfigError where
    the disjoint protocol would look at the reported split.
    """
    if use != "train" and protocol == "paper" and asked is None:
        return reported
    wanted = ["train"] if use == "train" else ["validation", "train"]
    chosen = asked or next((name for name in wanted if name in splits and name != reported), None)
    if chosen is None:
        raise ConfigError(
            f"taskpool.split={reported}: it is reported, and there is no other split to look at ({', '.join(splits)})."
        )
    if chosen == reported and protocol == "disjoint":
        raise ConfigError(refusal(chosen))
    return chosen


def refusal(split: str) -> str:
    """What is said where the disjoint protocol would look at the reported split."""
    return (
        f"taskpool.fit_split={split}: the split that is reported, too. Take another one, or say protocol=paper, which "
        "the report will state."
    )


class FittingSource(ABC):
    """What a task pool offers to algorithms that look at data.

    Which split: see :func:`split_of`.
    """

    @abstractmethod
    def fitting_facts(self, use: Use, names: Sequence[str], protocol: Protocol) -> dict[str, dict[str, Any]]:
        """What would be looked at for the tasks `names`: data, split, number of examples, ``reported: bool``, digests.

        Ready for JSON. Raises one UserError with every task whose data cannot be found. Imports no torch.
        """

    @abstractmethod
    def fitting_data(
        self,
        use: Use,
        names: Sequence[str],
        protocol: Protocol,
        *,
        reference: Checkpoint,
        settings: Settings,
        tokenizers: Sequence[Path | str] = (),
        progress: Progress | None = None,
        heads: Mapping[str, Checkpoint] | None = None,
    ) -> Mapping[str, TaskData]:
        """The data of the tasks `names` for models like `reference`, on the device of the run.

        `heads`: the models' own heads by name, where they are kept apart from what is fused.
        """

    @abstractmethod
    def held_out(self, protocol: Protocol) -> TaskPool:
        """The same tasks on the split for ``select``: choices are made by its scores."""
