"""The image sets of the suite: eight tasks, drawn anew from their seeds or packaged with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fusion_bench.errors import DataError, unknown

from .canvas import Array, stream
from .generators import GENERATORS, Generator
from .generators.digits import enlarged, originals

VERSION: Final = 1
SIZES: Final[dict[str, int]] = {"train": 4000, "validation": 600, "test": 600}
TASKS: Final[tuple[str, ...]] = tuple(GENERATORS)


@dataclass(frozen=True)
class ImageSet:
    """Images with their classes: ``images`` uint8 [n, h, w, 3], ``labels`` int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def classes(task: str) -> tuple[str, ...]:
    """The words of the classes; a label is a position among them."""
    return _generator(task).classes


def templates(task: str) -> tuple[str, ...]:
    """The prompts of the task's head, with ``{c}`` where the class stands."""
    return _generator(task).templates


def load(task: str, split: str) -> ImageSet:
    """The images of ``train``, ``validation`` or ``test``, in random order: any prefix is a fair sample.

    The splits share no image. Raises DataError for an unknown task or split.
    """
    if split not in SIZES:
        raise DataError(unknown("split", split, SIZES))
    _generator(task)
    return _loaded(task, split)


def drawn(task: str, label: int, rng: np.random.RandomState, *, field: bool) -> NDArray[np.uint8]:
    """One more image of a class, of the field or the catalogue; handwritten digits are copies of the train part."""
    if task == "digits" and field:
        images, labels = originals()
        chosen = _handwritten_order()[2 * SIZES["test"] :]
        chosen = chosen[labels[chosen] == label]
        return _eight(enlarged(images[chosen[rng.randint(len(chosen))]], rng))
    return _eight(_generator(task).draw(rng, label, field))


@cache
def _loaded(task: str, split: str) -> ImageSet:
    if task == "digits":
        return _handwritten(split)
    return _rendered(task, split)


def _rendered(task: str, split: str) -> ImageSet:
    key = f"{VERSION}/{task}/{split}"
    labels = np.arange(SIZES[split], dtype=np.int64) % len(classes(task))
    stream(key, "order").shuffle(labels)
    images = [drawn(task, int(label), stream(key, index), field=True) for index, label in enumerate(labels)]
    return _set(images, labels)


def _handwritten(split: str) -> ImageSet:
    images, labels = originals()
    order = _handwritten_order()
    start = {"validation": 0, "test": SIZES["validation"], "train": SIZES["validation"] + SIZES["test"]}[split]
    if split != "train":
        chosen = order[start : start + SIZES[split]]
        return _set([_eight(enlarged(images[index])) for index in chosen], labels[chosen])
    # The first round is the digits themselves, the others are moved, turned, scaled copies.
    whole = len(order) - start
    chosen = np.resize(order[start:], SIZES["train"])
    copies = [
        _eight(enlarged(images[index], stream(VERSION, "digits/train", n) if n >= whole else None))
        for n, index in enumerate(chosen)
    ]
    mixed = stream(VERSION, "digits/train").permutation(len(chosen))
    return _set([copies[n] for n in mixed], labels[chosen][mixed])


@cache
def _handwritten_order() -> NDArray[np.int64]:
    return stream(VERSION, "digits").permutation(len(originals()[0]))


def _eight(image: Array) -> NDArray[np.uint8]:
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def _set(images: list[NDArray[np.uint8]], labels: NDArray[np.int64]) -> ImageSet:
    return ImageSet(_locked(np.stack(images)), _locked(labels))


def _locked(array: NDArray) -> NDArray:  # type: ignore[type-arg]
    array.setflags(write=False)
    return array


def _generator(task: str) -> Generator:
    if task not in GENERATORS:
        raise DataError(unknown("task", task, GENERATORS))
    return GENERATORS[task]
