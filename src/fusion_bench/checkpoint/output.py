"""An output folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from fusion_bench.checkpoint.folder import CONFIG, PICKLE_INDEX, SAFETENSORS_INDEX, listed
from fusion_bench.errors import OutputError

PARTIAL = ".partial"
# Lists what was written, so that a later run may replace exactly that.
MANIFEST = "fusion_bench.json"
# Files that must not outlive a replaced model: a loader could prefer them.
_WEIGHTS = ("model*.safetensors", SAFETENSORS_INDEX, "pytorch_model*.bin", PICKLE_INDEX, "adapter_*")
# Weights under construction have a name that no loader accepts.
_UNFINISHED = ".part"
_LOCK = "lock"
# The index makes shards a checkpoint, the config makes a checkpoint a model: they come last, in this order.
_LAST = (SAFETENSORS_INDEX, MANIFEST, CONFIG)


def check_writable(out: str | Path, overwrite: bool = False) -> None:
    """Raises OutputError where a model could not be written to `out`; to be called before any work. Changes nothing."""
    out = Path(out)
    place = out
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"{out}: cannot be a folder: {place} is a file.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: no permission to write in {place}.")
    if place == out and not overwrite:
        there = sorted({entry.name for entry in out.iterdir()} - {PARTIAL, MANIFEST} - _written(out))
        if there:
            raise OutputError(
                f"{out}: holds other files ({listed(there, 5)}). Choose an empty or new folder, or pass overwrite=true."
            )


def check_space(out: Path, needed: int) -> None:
    """Raises OutputError where the disk of `out` has fewer than `needed` bytes left."""
    place = out
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(f"{out}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left.")


class Staging:
    """The folder under construction. `path(name)`: where to write the file that will be called `name`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: list[str] = []

    def path(self, name: str) -> Path:
        if Path(name).name != name or name in (PARTIAL, ".", ".."):
            raise OutputError(f"{name!r} is no name for a file of a model.")
        if name not in self._names:
            self._names.append(name)
        return self.folder / (name + _UNFINISHED)

    def add(self, name: str, content: bytes) -> None:
        """Writes a small file and syncs it to disk."""
        with open(self.path(name), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def names(self) -> list[str]:
        """All files, those that make the others loadable last."""
        return sorted(self._names, key=lambda name: (_LAST.index(name) + 1 if name in _LAST else 0, name))


@contextmanager
def staged(out: Path) -> Iterator[Staging]:
    """Yields a staging folder inside `out`; on success its files replace those in `out`, else nothing is left.

    A killed process leaves at most the staging folder, which no loader accepts and the next run removes.
    """
    created = _make(out)
    folder = out / PARTIAL
    lock = _locked(folder, out)
    try:
        for left in folder.iterdir():
            if left.name != _LOCK:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        staging = Staging(folder)
        yield staging
        manifest = {"format": 1, "files": {name: _size(staging, name) for name in staging.names()}}
        staging.add(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        _publish(staging, out)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        for made in reversed(created):
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()
        if isinstance(error, OSError):
            fault = error.strerror or error
            raise OutputError(f"{out}: could not be written ({fault}). Nothing was left there.") from error
        raise
    finally:
        os.close(lock)


def _locked(folder: Path, out: Path) -> int:
    """Makes the staging folder this process's own, until the returned descriptor is closed."""
    try:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputError(f"{out}: could not be written ({error.strerror or error}).") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise OutputError(f"{out}: another run is writing there. Wait for it, or choose another folder.") from None
    return lock


def _make(out: Path) -> list[Path]:
    """Makes `out`; returns the folders that did not exist before, outermost first."""
    missing = [place for place in (out, *out.parents) if not place.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made ({error.strerror or error}).") from None
    return missing[::-1]


def _publish(staging: Staging, out: Path) -> None:
    names = staging.names()
    # Without its config the old model is no longer one, so no moment shows a mixture of old and new.
    for name in (CONFIG, SAFETENSORS_INDEX, PICKLE_INDEX):
        (out / name).unlink(missing_ok=True)
    for name in _outdated(out, names):
        (out / name).unlink(missing_ok=True)
    for name in names:
        os.replace(staging.folder / (name + _UNFINISHED), out / name)
    (staging.folder / _LOCK).unlink(missing_ok=True)
    staging.folder.rmdir()
    descriptor = os.open(out, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _outdated(out: Path, names: list[str]) -> list[str]:
    """Files of a former output that the new one does not replace: those we wrote, and weights of any origin."""
    there = {entry.name for entry in out.iterdir() if entry.is_file()}
    weights = {name for name in there if any(fnmatch(name, pattern) for pattern in _WEIGHTS)}
    return sorted((_written(out) | weights) & there - set(names))


def _written(out: Path) -> set[str]:
    """The files that a former output consists of; empty where `out` holds none."""
    try:
        return set(json.loads((out / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _size(staging: Staging, name: str) -> int:
    return staging.path(name).stat().st_size
