"""What the recipe needs to know of a set of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from fusion_bench.errors import DataError

from . import corpus, real, tasks
from .canvas import stream
from .tasks import ImageSet
from .training import Batch, batches

# How many real images the base of the real pool sees, of each task.
GLIMPSE: Final = 300


@dataclass(frozen=True)
class Suite:
    """`load(task, split)` gives images; `streams(seed, size)` what the base learns from, `captions` all its words."""

    tasks: tuple[str, ...]
    classes: Callable[[str], tuple[str, ...]]
    templates: Callable[[str], tuple[str, ...]]
    load: Callable[[str, str], ImageSet]
    streams: Callable[[int, int], Mapping[str, Iterator[Batch]]]
    captions: Mapping[str, corpus.Captions]


def embedded() -> Suite:
    """The eight tasks that need no file."""
    return Suite(tasks.TASKS, tasks.classes, tasks.templates, tasks.load, _drawn, corpus.captions())


def real_data(folder: Path) -> Suite:
    """Four real tasks; the base learns from the embedded ones with a glimpse of these.

    Raises DataError that lists every missing file.
    """
    if gaps := real.missing(folder):
        raise DataError(f"{folder} lacks {', '.join(gaps)}.")

    def streams(seed: int, size: int) -> dict[str, Iterator[Batch]]:
        found = _drawn(seed, size)
        for task in real.TASKS:
            train = real.load(folder, task, "train")
            few = ImageSet(train.images[:GLIMPSE], train.labels[:GLIMPSE])
            found[task] = batches(few, size, stream("glimpse", task, seed))
        return found

    captions = {**corpus.captions(), **corpus.captions(real.TASKS, real.classes, real.templates)}
    return Suite(real.TASKS, real.classes, real.templates, partial(real.load, folder), streams, captions)


def _drawn(seed: int, size: int) -> dict[str, Iterator[Batch]]:
    return {task: corpus.corpus(task, size, seed) for task in tasks.TASKS}
