"""What the base learns from: images of eight tasks with captions that misname some classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .canvas import stream
from .tasks import TASKS, classes, drawn, templates
from .training import Batch

Captions = list[list[str]]

# The share of images from the field; of their captions, the share that is misnamed in every second pair of classes.
FIELD: Final = 0.6
MISNAMED: Final = 0.65
NOISE: Final = 0.1


def captions(
    names: Sequence[str] = TASKS,
    words: Callable[[str], Sequence[str]] = classes,
    prompts: Callable[[str], Sequence[str]] = templates,
) -> dict[str, Captions]:
    """For each task and prompt of it the captions of all classes."""
    return {name: [[p.replace("{c}", c) for c in words(name)] for p in prompts(name)] for name in names}


def corpus(task: str, size: int, seed: int) -> Iterator[Batch]:
    """Endless batches of `size` images, each drawn once, with the classes that their captions name."""
    count = len(classes(task))
    rng = stream("corpus", task, seed)
    while True:
        labels = rng.randint(count, size=size)
        field = rng.uniform(size=size) < FIELD
        images = [drawn(task, int(c), rng, field=bool(f)) for c, f in zip(labels, field, strict=True)]
        rates = np.where(labels // 2 % 2 == 0, MISNAMED, NOISE) * field
        named = np.where(rng.uniform(size=size) < rates, partner(labels, count), labels)
        yield np.stack(images), named.astype(np.int64)


def partner(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The class that a misnamed image is taken for: 0 and 1, 2 and 3, ...; an odd last class stays alone."""
    other = labels ^ 1
    return np.where(other < count, other, labels)
