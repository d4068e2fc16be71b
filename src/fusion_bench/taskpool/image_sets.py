"""Labelled images, read where they are needed, whatever they come from."""

from __future__ import annotations

import importlib
import json
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.errors import DataError
from fusion_bench.taskpool.image_tasks import ImageTask, fold
from fusion_bench.taskpool.origin import Origin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Decompressed row groups that are kept for random access, in bytes of their encoded images.
_KEPT: Final = 256_000_000
_GENERATED: Final = "fusion_bench.zoo.vision.tasks"


class ImageSet(ABC):
    """The images of one split of a task in the order of their source.

    `column`: of the files, where there are some; `classes`: names in label order; `labels`: positions among them;
    `origin`: for the report.
    """

    task: str
    column: str = ""
    classes: tuple[str, ...]
    labels: Sequence[int]
    origin: Origin

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def stored(self, places: Sequence[int]) -> list[Any]:
        """The images as the source keeps them. Neighbouring places are read fastest. Safe to call from threads."""

    @abstractmethod
    def decoded(self, stored: Any, place: int) -> NDArray[np.uint8]:
        """The image at a place as rows x columns x red-green-blue."""


class Parquet(ImageSet):
    """Parquet (or arrow) files with a column of encoded images; a row group is in memory at a time, not the file."""

    def __init__(self, task: str, files: Sequence[Path], spec: ImageTask, origin: Origin) -> None:
        self.task, self.origin, self.column = task, origin, spec.image
        self._blocks: list[tuple[Any, int, int]] = []  # file, its block, rows before it
        self._held: OrderedDict[int, list[Any]] = OrderedDict()
        self._lock = threading.Lock()
        names: tuple[str, ...] | None = None
        labels: list[int] = []
        total = 0
        for file in files:
            try:
                source = _opened(file)
                missing = {spec.image, spec.label} - set(source.columns)
                if missing:
                    raise DataError(
                        f"{task}: {file} has no column {', '.join(sorted(missing))}, only "
                        f"{', '.join(source.columns)}. Set taskpool.tasks.{task}.image and .label."
                    )
                names = names or source.class_names(spec.label)
                for number in range(source.blocks):
                    found = source.read(number, spec.label)
                    self._blocks.append((source, number, total))
                    labels += found
                    total += len(found)
            except (OSError, ValueError) as fault:  # pyarrow's errors derive from these
                raise DataError(f"{task}: {file} cannot be read: {fault}. Fetch the file again.") from fault
        where = f"{', '.join(map(str, files))}"
        self.classes = _classes(task, spec.classes, names, where)
        self.labels = _checked(task, labels, len(self.classes), where)

    def stored(self, places: Sequence[int]) -> list[Any]:
        found: list[Any] = [None] * len(places)
        with self._lock:
            for at, place in enumerate(places):
                number = self._block_of(place)
                found[at] = self._rows(number)[place - self._blocks[number][2]]
        return found

    def decoded(self, stored: Any, place: int) -> NDArray[np.uint8]:
        import io

        import numpy as np
        from PIL import Image, ImageOps

        content = stored.get("bytes") if isinstance(stored, Mapping) else stored
        if not isinstance(content, bytes):
            raise DataError(f"{self.task}: image {place} of {self.origin.path} is no encoded image but {stored!r:.80}.")
        try:
            with Image.open(io.BytesIO(content)) as image:
                # As `datasets` decodes: an image whose file says how it is turned is turned.
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as fault:
            raise DataError(f"{self.task}: image {place} of {self.origin.path} cannot be decoded: {fault}.") from fault

    def _block_of(self, place: int) -> int:
        from bisect import bisect_right

        return bisect_right(self._blocks, place, key=lambda block: block[2]) - 1

    def _rows(self, number: int) -> list[Any]:
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        source, block, _ = self._blocks[number]
        rows: list[Any] = source.read(block, self.column)
        self._held[number] = rows
        while len(self._held) > 1 and sum(map(_weight, self._held.values())) > _KEPT:
            self._held.popitem(last=False)
        return rows


class Generated(ImageSet):
    """Images that the package draws itself, all in memory."""

    def __init__(self, task: str, split: str) -> None:
        tasks: Any = importlib.import_module(_GENERATED)
        found = tasks.load(task, split)
        self.task, self._images = task, found.images
        self.classes = tuple(tasks.classes(task))
        self.labels = _checked(task, found.labels.tolist(), len(self.classes), _GENERATED)
        self.origin = Origin("generated", _GENERATED, split, version=str(tasks.VERSION))

    def stored(self, places: Sequence[int]) -> list[Any]:
        return [self._images[place] for place in places]

    def decoded(self, stored: Any, place: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = stored
        return image


class _ParquetFile:
    def __init__(self, file: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(file, memory_map=True)
        self._schema = self._file.schema_arrow
        self.columns: list[str] = self._schema.names
        self.blocks: int = self._file.num_row_groups

    def class_names(self, label: str) -> tuple[str, ...] | None:
        return _names_in(self._schema.metadata, label)

    def read(self, number: int, column: str) -> list[Any]:
        rows: list[Any] = self._file.read_row_group(number, columns=[column]).column(0).to_pylist()
        return rows


class _ArrowFile:
    def __init__(self, file: Path) -> None:
        import pyarrow as pa

        self._batches = pa.ipc.open_stream(pa.memory_map(str(file))).read_all().to_batches(max_chunksize=1000)
        self._schema = self._batches[0].schema if self._batches else pa.schema([])
        self.columns: list[str] = self._schema.names
        self.blocks = len(self._batches)

    def class_names(self, label: str) -> tuple[str, ...] | None:
        return _names_in(self._schema.metadata, label)

    def read(self, number: int, column: str) -> list[Any]:
        rows: list[Any] = self._batches[number].column(column).to_pylist()
        return rows


def _opened(file: Path) -> _ParquetFile | _ArrowFile:
    return _ArrowFile(file) if file.suffix == ".arrow" else _ParquetFile(file)


def has_images(file: Path) -> bool:
    """Whether a parquet file has a column called as images are called by default, and one of labels."""
    try:
        return {"image", "label"} <= set(_opened(file).columns)
    except (OSError, ValueError):
        return False


def _names_in(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """The names of the classes as `datasets` writes them into a file."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None


def _classes(task: str, asked: Sequence[str] | None, found: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """The names that are asked for, once it is certain that the data set does not number its classes otherwise."""
    if asked is None:
        if not found:
            raise DataError(f"{task}: {where} carry no class names. Give them in taskpool.tasks.{task}.classes.")
        return tuple(found)
    if found is None:
        return tuple(asked)
    if len(found) != len(asked):
        raise DataError(f"{task}: {where} know {len(found)} classes, taskpool.tasks.{task}.classes {len(asked)}.")
    check_order(task, asked, found, where)
    return tuple(asked)


def check_order(task: str, asked: Sequence[str], found: Sequence[str], where: str) -> None:
    """DataError where `found`, the names that `where` gives the classes of a task, stand in another order.

    Spellings differ between data sets and prompts, so only a name that stands at another place tells of another order.
    """
    ours = {fold(name): place for place, name in enumerate(asked)}
    moved = [
        f"{name!r} is class {place} there, {ours[fold(name)]} of the class names"
        for place, name in enumerate(found[: len(asked)])
        if fold(name) != fold(asked[place]) and ours.get(fold(name), place) != place
    ]
    if moved:
        raise DataError(
            f"{task}: {where} number the classes in another order: {'; '.join(moved[:3])}. "
            f"Give taskpool.tasks.{task}.classes in that order."
        )


def _checked(task: str, labels: Sequence[Any], count: int, where: str) -> list[int]:
    if not labels:
        raise DataError(f"{task}: {where} hold no example.")
    wrong = [
        (place, label) for place, label in enumerate(labels) if not (isinstance(label, int) and 0 <= label < count)
    ]
    if wrong:
        place, label = wrong[0]
        raise DataError(
            f"{task}: {where}: the label of image {place} is {label!r}, {len(wrong)} labels are no class between 0 and "
            f"{count - 1}. A split without labels cannot be scored."
        )
    return list(labels)


def _weight(rows: Sequence[Any]) -> int:
    return sum(len(row.get("bytes") or b"") if isinstance(row, Mapping) else len(row or b"") for row in rows)
