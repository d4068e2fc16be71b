"""Reading an output back against the digests in its manifest. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fusion_bench.checkpoint.base import DTYPE_BYTES, TensorInfo
from fusion_bench.checkpoint.contents import look
from fusion_bench.checkpoint.digests import Extent, combined, cut, digests_of
from fusion_bench.checkpoint.manifest import MANIFEST, Manifest, TensorEntry
from fusion_bench.errors import OutputError
from fusion_bench.progress import Advance, Progress


@dataclass(frozen=True)
class Verdict:
    """`faults`: a line for every damaged tensor and file, empty for an output that is whole."""

    folder: Path
    tensors: int = 0
    nbytes: int = 0
    faults: tuple[str, ...] = ()
    unfinished: bool = False

    @property
    def whole(self) -> bool:
        return not self.faults and not self.unfinished


def verify(folder: str | Path, threads: int = 1, progress: Progress | None = None) -> Verdict:
    """Reads all of the output in `folder`; OutputError where it is none, or holds several (see `outputs_in`)."""
    folder = Path(folder)
    contents = look(folder)
    if contents.unreadable:
        return Verdict(folder, faults=(f"{MANIFEST}: damaged",))
    remains = contents.remains
    moving = remains is not None and remains.ours and remains.moving is not None
    if contents.manifest is None or moving:
        if (remains is not None and remains.ours) or any(_is_a_part(folder / name) for name in contents.others):
            return Verdict(folder, unfinished=True)
        missing = "no such folder" if not folder.is_dir() else f"not an output of fusion_bench (no {MANIFEST})"
        raise OutputError(f"{folder}: {missing}.")
    if contents.manifest.parts:
        raise OutputError(f"{folder}: holds several outputs: {', '.join(contents.manifest.parts)}.")
    faults = tuple(_faults(folder, contents.manifest, threads, progress or Progress(enabled=False)))
    tensors = contents.manifest.tensors
    return Verdict(folder, len(tensors), sum(_info(entry).nbytes for entry in tensors.values()), faults)


def outputs_in(folder: str | Path) -> list[Path]:
    """The outputs that `folder` consists of: itself, or the models that one command made together."""
    folder = Path(folder)
    manifest = look(folder).manifest
    if manifest is None or not manifest.parts:
        return [folder]
    return [each for part in manifest.parts for each in outputs_in(folder / part)]


def _faults(folder: Path, manifest: Manifest, threads: int, progress: Progress) -> Iterator[str]:
    with ExitStack() as stack:
        descriptors: dict[str, int] = {}
        for name in manifest.files:
            try:
                descriptors[name] = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                yield f"{name}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}"
            else:
                stack.callback(os.close, descriptors[name])
        total = sum(entry.size for name, entry in manifest.files.items() if name in descriptors)
        advance = stack.enter_context(progress.bar(f"checking {folder.name}", total, "B"))
        yield from _files(manifest, descriptors, threads, advance)
        yield from _tensors(manifest, descriptors, threads, advance)


def _files(manifest: Manifest, descriptors: dict[str, int], threads: int, advance: Advance) -> Iterator[str]:
    """Faults of whole small files and of the headers of weights files."""
    of_size = []
    for name, descriptor in descriptors.items():
        entry, size = manifest.files[name], os.fstat(descriptor).st_size
        if size != entry.size:
            yield f"{name}: {size} bytes, not {entry.size}"
        else:
            of_size.append((name, (descriptor, 0, entry.size if entry.head is None else entry.head)))
    found = digests_of([extent for _, extent in of_size], threads, advance)
    for (name, _), each in zip(of_size, found, strict=True):
        entry = manifest.files[name]
        if each is None or each.hex() != entry.digest:
            yield f"{name}: wrong digest" + ("" if entry.head is None else " of its header")


def _tensors(manifest: Manifest, descriptors: dict[str, int], threads: int, advance: Advance) -> Iterator[str]:
    there = {name: entry for name, entry in manifest.tensors.items() if entry.file in descriptors}
    extents = {name: _extents(name, entry, descriptors[entry.file]) for name, entry in there.items()}
    read = iter(digests_of([extent for each in extents.values() for extent in each], threads, advance))
    for name, entry in manifest.tensors.items():
        if name not in there:
            yield f"tensor {name!r}: missing with {entry.file}"
            continue
        found = [next(read) for _ in extents[name]]
        known = [piece for piece in found if piece is not None]
        if len(known) < len(found):
            yield f"tensor {name!r}: cannot be read from {entry.file}"
        elif combined(known) != entry.digest:
            yield f"tensor {name!r}: wrong digest in {entry.file}"


def _extents(name: str, entry: TensorEntry, descriptor: int) -> list[Extent]:
    width = DTYPE_BYTES[entry.dtype]
    pieces = cut(name, 0, _info(entry).numel, entry.step)
    return [(descriptor, entry.position + start * width, (stop - start) * width) for _, start, stop in pieces]


def _info(entry: TensorEntry) -> TensorInfo:
    return TensorInfo(entry.dtype, entry.shape)


def _is_a_part(folder: Path) -> bool:
    """Whether `folder` was written, or begun, as one of several models of a command."""
    contents = look(folder)
    origins = [each.origin for each in (contents.manifest, contents.remains) if each is not None]
    return any(origin is not None and origin.get("part") == folder.name for origin in origins)
