"""Moving a whole output into place, so that a kill between two moves shows no model, and the next run goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from fusion_bench.checkpoint.contents import JOURNAL, LOCK, ORIGIN, PARTIAL, UNFINISHED
from fusion_bench.checkpoint.folder import CONFIG, PICKLE_INDEX, SAFETENSORS_INDEX
from fusion_bench.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from fusion_bench.checkpoint.output import WEIGHTS

_SHARD = "model*.safetensors"


def publish(out: Path, new: Manifest) -> None:
    """Moves the files of `new`, all of them whole in `.partial` or in place already, into `out`.

    A former output is unmade first: what would make a model of its weights together with new ones goes before anything
    comes. The manifest in `.partial` is the last to be removed: while it is there, this function can be called again.
    """
    partial = out / PARTIAL
    waiting = {name for name in new.files if (partial / (name + UNFINISHED)).exists()}
    moved = set(new.files) - waiting
    for name in (CONFIG, SAFETENSORS_INDEX, PICKLE_INDEX):
        if name not in moved:
            (out / name).unlink(missing_ok=True)
    _remove_files(out, moved, set(new.files))
    for name in _ordered([*new.files, MANIFEST]):
        if name == MANIFEST:
            _put(partial / (MANIFEST + UNFINISHED), out)
        elif name in waiting:
            os.replace(partial / (name + UNFINISHED), out / name)
    sync(out)
    empty(partial)


def clear(partial: Path) -> None:
    """Removes `.partial`, the lock last."""
    if not partial.is_dir():
        return
    empty(partial)
    (partial / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # another run may have begun there since
        partial.rmdir()


def empty(partial: Path) -> None:
    """Removes everything but the lock; what tells of the rest goes first, so that no kill leaves a promise alone."""
    for name in (JOURNAL, MANIFEST + UNFINISHED, ORIGIN):
        (partial / name).unlink(missing_ok=True)
    for entry in partial.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Has the disk take the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ordered(names: Iterable[str]) -> list[str]:
    """What makes a model of the others comes last: the only weights file, or the config where there are shards."""
    names = sorted(names)
    shards = [name for name in names if fnmatch(name, _SHARD)]
    last = (
        [MANIFEST, *shards, SAFETENSORS_INDEX] if len(shards) <= 1 else [*shards, SAFETENSORS_INDEX, MANIFEST, CONFIG]
    )
    return [name for name in names if name not in last] + [name for name in last if name in names]


def remove_former(out: Path, keep: set[str]) -> None:
    """Removes a former output from `out`, and weights of any origin; of its parts those that are not to be kept."""
    (out / CONFIG).unlink(missing_ok=True)
    _remove_files(out, keep, keep)


def _remove_files(out: Path, moved: set[str], new: set[str]) -> None:
    """Files of a former output that the new one does not replace, and weights of any origin."""
    there = {entry.name for entry in out.iterdir() if entry.is_file()}
    weights = {name for name in there if any(fnmatch(name, pattern) for pattern in WEIGHTS)}
    former = _former(out)
    for name in sorted((set(former.files) - new | weights) & there - moved):
        (out / name).unlink(missing_ok=True)
    for part in set(former.parts) - new:
        remove_output(out / part)


def remove_output(folder: Path) -> None:
    """Removes a finished output and what remains of an unfinished one; other files stay."""
    (folder / CONFIG).unlink(missing_ok=True)
    former = _former(folder)
    for name in former.files:
        (folder / name).unlink(missing_ok=True)
    for part in former.parts:
        remove_output(folder / part)
    (folder / MANIFEST).unlink(missing_ok=True)
    clear(folder / PARTIAL)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _former(out: Path) -> Manifest:
    try:
        return read_manifest(out / MANIFEST)
    except (OSError, ValueError):
        return Manifest()


def _put(source: Path, out: Path) -> None:
    """A copy of the manifest appears in `out` at once; the original stays until all is done."""
    copy = source.with_name("manifest.copy")
    with open(copy, "wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(copy, out / MANIFEST)
