"""Four real image sets out of folders in the layout of the Hub: a second pool of the same recipe."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fusion_bench.errors import DataError, unknown

from .canvas import SIDE, stream
from .generators.digits import WORDS
from .tasks import ImageSet

_DIGITS = (WORDS, ('a photo of the number: "{c}".', "the handwritten digit {c}."))
_WORDS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "mnist": _DIGITS,
    "usps": _DIGITS,
    "fashion_mnist": (
        ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
        ("a photo of a {c} to wear.", "a piece of clothing: {c}."),
    ),
    "cifar10_jpeg": (
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        ("a photo of a {c}.", "a small photo of the {c}."),
    ),
}
TASKS: Final[tuple[str, ...]] = tuple(_WORDS)
# Taken from the end of the shuffled training part.
VALIDATION: Final = 1000


def classes(task: str) -> tuple[str, ...]:
    """The words of the classes; a label is a position among them."""
    return _WORDS[_known(task)][0]


def templates(task: str) -> tuple[str, ...]:
    """The prompts of the task's head, with ``{c}`` where the class stands."""
    return _WORDS[_known(task)][1]


def missing(folder: Path) -> list[str]:
    """The tasks that `folder` has no files of; empty where the pool can be built."""
    wanted = [(task, split) for task in TASKS for split in ("train", "test")]
    return [f"{task}/default/{split}-*.parquet" for task, split in wanted if not _files(folder, task, split)]


def load(folder: Path, task: str, split: str) -> ImageSet:
    """Images of SIDE x SIDE of ``train``, ``validation`` or ``test``, shuffled once: any prefix is a fair sample.

    Reads ``folder/<task>/default/{train,test}-*.parquet`` with the columns image {bytes, path} and label. Raises
    DataError where files or columns are missing.
    """
    if split not in ("train", "validation", "test"):
        raise DataError(unknown("split", split, ("train", "validation", "test")))
    images = _read(folder, _known(task), "test" if split == "test" else "train")
    if split == "test":
        return images
    part = slice(-VALIDATION, None) if split == "validation" else slice(None, -VALIDATION)
    return ImageSet(images.images[part], images.labels[part])


@cache
def _read(folder: Path, task: str, split: str) -> ImageSet:
    import pyarrow.parquet as parquet

    files = _files(folder, task, split)
    if not files:
        raise DataError(f"{folder / task / 'default'} has no {split}-*.parquet. Give a folder with {', '.join(TASKS)}.")
    images, labels = list[NDArray[np.uint8]](), list[int]()
    for file in files:
        table = parquet.read_table(file)
        if lacking := {"image", "label"} - set(table.column_names):
            raise DataError(f"{file} has no column {', '.join(sorted(lacking))}; expected image and label.")
        images += [_decoded(row["bytes"]) for row in table["image"].to_pylist()]
        labels += table["label"].to_pylist()
    order = stream("real", task, split).permutation(len(labels))
    return ImageSet(np.stack(images)[order], np.array(labels, dtype=np.int64)[order])


def _files(folder: Path, task: str, split: str) -> list[Path]:
    return sorted((folder / task / "default").glob(f"{split}-*.parquet"))


def _decoded(data: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.uint8)


def _known(task: str) -> str:
    if task not in _WORDS:
        raise DataError(unknown("task", task, _WORDS))
    return task
