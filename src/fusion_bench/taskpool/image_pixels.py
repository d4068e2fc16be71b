"""The images of a task in a fixed order, decoded, damaged where asked for, resized."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.parallel import ordered_map
from fusion_bench.taskpool import answer_cache
from fusion_bench.taskpool.image_processor import ImageProcessor
from fusion_bench.taskpool.image_sets import ImageSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Part of the key of kept pixels: to be raised by any change of how they are made.
_VERSION: Final = 1
# The largest set of resized images that is kept on disk, in bytes: 3400 images of 224 x 224. Larger ones are made anew.
KEPT: Final = 512_000_000
# Images that a thread decodes in one go.
_PIECE: Final = 8


@dataclass(frozen=True, slots=True)
class Damage:
    """A corruption with its severity from 1 to 5. `parity`: pixelate as the published code does it."""

    name: str
    severity: int = 5
    parity: bool = False

    def applied(self, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """The damaged image; `index` is its place in the data set, which seeds what is random."""
        from fusion_bench.taskpool.corruptions import corrupt

        damaged: NDArray[np.uint8] = corrupt(image, self.name, self.severity, index=index, parity=self.parity)
        return damaged


@dataclass(frozen=True)
class Pixels:
    """The images at `places` of a set as bytes, images x channels x height x width, by their position in `places`.

    `keep`: whether a small set may be kept on disk, where the next run finds it.
    """

    images: ImageSet
    places: Sequence[int]
    processor: ImageProcessor
    damage: Damage | None = None
    keep: bool = True

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def digest(self) -> str:
        """128 bits over everything that decides what the image at a place of the set becomes."""
        damage, origin = self.damage, self.images.origin.as_dict()
        content = {
            "version": _VERSION,
            "data": {key: value for key, value in origin.items() if key not in ("path", "source")},
            "task": self.images.task,
            "column": self.images.column,
            "processor": self.processor.digest,
            "damage": None if damage is None else [damage.name, damage.severity, damage.parity],
        }
        return _hash(content)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self._made(self._stored(range(1)))[0].shape
        return channels, height, width

    def at(self, positions: Sequence[int], threads: int = 1) -> NDArray[Any]:
        """The images at some positions, decoded on `threads` threads where they are not kept."""
        whole = self._kept
        if whole is not None:
            picked: NDArray[Any] = whole[list(positions)]
            return picked
        stored = self._stored(positions)
        if threads == 1 or len(stored) < 2 * _PIECE:
            return self._made(stored)
        return _joined(
            ordered_map(self._made, (stored[i : i + _PIECE] for i in range(0, len(stored), _PIECE)), threads)
        )

    def batches(self, groups: Sequence[Sequence[int]], threads: int) -> Iterator[tuple[Sequence[int], NDArray[Any]]]:
        """Groups of positions with their images, in order; decoding runs on `threads` threads."""
        if not groups:
            return
        if self.small:
            self.prepare(threads)
            for group in groups:
                yield group, self.at(group)
            return
        # Read here, in order, so that a block of the file is read once; decoded there.
        made = ordered_map(self._made, (self._stored(group) for group in groups), threads)
        yield from zip(groups, made, strict=True)

    def prepare(self, threads: int) -> None:
        """Makes a small set whole, on `threads` threads, unless it is kept from earlier."""
        if not self.small or self._kept is not None:
            return
        pieces = (range(start, min(start + 32, len(self))) for start in range(0, len(self), 32))
        made = _joined(ordered_map(self._made, (self._stored(piece) for piece in pieces), threads))
        self.__dict__["_kept"] = made
        if self.keep:
            _write(self._file, made)

    @cached_property
    def _kept(self) -> NDArray[Any] | None:
        import numpy as np

        if not (self.small and self.keep):
            return None
        try:
            found: NDArray[Any] = np.load(self._file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return found if found.shape == (len(self), *self.shape) else None

    @property
    def small(self) -> bool:
        """Whether all of it may be kept."""
        channels, height, width = self.shape
        return len(self) * channels * height * width <= KEPT

    @property
    def _file(self) -> Path:
        return answer_cache.folder().parent / "pixels" / f"{_hash([self.digest, list(self.places)])}.npy"

    def _stored(self, positions: Sequence[int]) -> list[tuple[int, Any]]:
        places = [self.places[position] for position in positions]
        return list(zip(places, self.images.stored(places), strict=True))

    def _made(self, stored: Sequence[tuple[int, Any]]) -> NDArray[Any]:
        images = [self.images.decoded(content, place) for place, content in stored]
        if self.damage is not None:
            images = [self.damage.applied(image, place) for image, (place, _) in zip(images, stored, strict=True)]
        return self.processor.resized(images)


def _joined(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    import numpy as np

    return np.concatenate(list(parts))


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write(file: Path, pixels: NDArray[Any]) -> None:
    """Whole or not at all. A folder that cannot be written to costs the reuse, nothing else."""
    import numpy as np

    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as stream:
            np.save(stream, pixels, allow_pickle=False)
        draft.replace(file)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
