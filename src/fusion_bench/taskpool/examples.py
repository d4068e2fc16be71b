"""The examples of a task, whatever they come from, in the order in which a limit takes them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from fusion_bench.errors import DataError
from fusion_bench.taskpool import glue_data
from fusion_bench.taskpool.origin import Origin
from fusion_bench.taskpool.templates import Rendered, Spelling, render

Source = Literal["glue", "mini_t5"]
_GENERATED = "fusion_bench.zoo.text.tasks"


@dataclass(frozen=True, slots=True)
class Examples:
    """Rendered examples of one task. `ids`: the data set's own index of each, its position where there is none."""

    task: str
    ids: tuple[Any, ...]
    texts: tuple[Rendered, ...]
    origin: Origin

    def __len__(self) -> int:
        return len(self.texts)


def read(
    task: str,
    source: Source,
    *,
    data_dir: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    spelling: Spelling = "answere",
) -> Examples:
    """The examples of one task as text; DataError where they cannot be found or are not of the task's form.

    `limit`: the first so many of a shuffle that depends on the task and its size alone: every model and every seed
    meets the same ones, and a smaller limit takes a part of what a larger one takes.
    """
    rows, origin = _generated(task, split) if source == "mini_t5" else _real(task, data_dir, split)
    places = range(len(rows)) if limit is None else shuffled(task, len(rows))[:limit]
    ids: list[Any] = []
    texts: list[Rendered] = []
    for place in places:
        row = rows[place]
        ids.append(row.get("idx", place))
        try:
            texts.append(render(task, row, spelling))
        except DataError as fault:
            raise DataError(f"{fault} (Example {ids[-1]} of {origin.path}, split {origin.split}.)") from None
    return Examples(task, tuple(ids), tuple(texts), origin)


def shuffled(task: str, count: int) -> list[int]:
    """The positions 0 … count-1 in the order in which limits take them."""
    places = list(range(count))
    Random(f"fusion_bench/limit/{task}").shuffle(places)
    return places


def _real(task: str, data_dir: str | None, split: str | None) -> tuple[Sequence[Mapping[str, Any]], Origin]:
    found = glue_data.find(task, data_dir, split)
    return found.rows(), found.origin


def _generated(task: str, split: str | None) -> tuple[Sequence[Mapping[str, Any]], Origin]:
    # Its validation split serves to choose hyperparameters, so what is reported is another one.
    chosen = split or "test"
    tasks: Any = importlib.import_module(_GENERATED)
    try:
        rows: Sequence[Mapping[str, Any]] = tasks.load(task, chosen)
    except ValueError as fault:
        raise DataError(f"{task}: {fault}.") from fault
    version = getattr(tasks, "VERSION", None)
    return rows, Origin("generated", _GENERATED, chosen, version=None if version is None else str(version))
