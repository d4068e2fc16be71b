"""The folder in which an output is written until it is whole, and from which an interrupted one is continued."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fusion_bench.checkpoint.contents import JOURNAL, LOCK, ORIGIN, PARTIAL, UNFINISHED, look
from fusion_bench.checkpoint.digests import digest
from fusion_bench.checkpoint.journal import Journal
from fusion_bench.checkpoint.manifest import MANIFEST, FileEntry, Manifest, TensorEntry, is_plain_name
from fusion_bench.checkpoint.output import busy
from fusion_bench.checkpoint.publish import clear, empty, publish, sync
from fusion_bench.checkpoint.sealed import Origin, plain, sealed
from fusion_bench.errors import FusionError, OutputError


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Makes `out` and holds its lock; removes what of it is still empty in the end."""
    created = [place for place in (out, *out.parents) if not place.exists()]
    lock = -1
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = _locked(out)
        yield
    except OSError as error:
        raise OutputError(f"{out}: could not be written ({error.strerror or error}).") from error
    finally:
        partial = out / PARTIAL
        if lock >= 0 and partial.is_dir() and {entry.name for entry in partial.iterdir()} <= {LOCK}:
            clear(partial)
        for made in created:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()
        if lock >= 0:
            os.close(lock)


def _locked(out: Path) -> int:
    """The lock of `out`, held until the returned descriptor is closed."""
    path = out / PARTIAL / LOCK
    while True:
        try:
            path.parent.mkdir(exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # a run that ends just now has removed the folder
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise busy(out) from None
        except OSError:
            return lock  # a file system without locks
        if _is_file_of(lock, path):
            return lock
        os.close(lock)  # the file of a run that has ended since it was opened


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class Staging:
    """An output under construction. `path(name)`: where to write the file that will be called `name`.

    With an `origin` it can be continued: `journal` then tells what a former run wrote of the same layout.
    """

    def __init__(self, out: Path, origin: Origin | None, layout: str) -> None:
        self.out, self.folder = out, out / PARTIAL
        self._origin = None if origin is None else plain(origin)
        self._files: dict[str, FileEntry] = {}
        remains = look(out).remains
        same = remains is not None and remains.origin is not None and remains.origin == self._origin
        if same and remains is not None and remains.layout == layout:
            (self.folder / (MANIFEST + UNFINISHED)).unlink(missing_ok=True)
        else:
            empty(self.folder)
            self._write(self.folder / ORIGIN, sealed({"origin": self._origin, "layout": layout}))
        self.journal = Journal(self.folder / JOURNAL)

    def path(self, name: str) -> Path:
        if not is_plain_name(name) or name in (PARTIAL, MANIFEST):
            raise OutputError(f"{name!r} is no name for a file of a model.")
        return self.folder / (name + UNFINISHED)

    def add(self, name: str, content: bytes) -> None:
        """Writes a small file and syncs it to disk."""
        self._write(self.path(name), content)
        self._files[name] = FileEntry(len(content), digest(content).hex())

    def finish(self, shards: Mapping[str, FileEntry], tensors: Mapping[str, TensorEntry]) -> None:
        """Moves everything into place; the weights files are written and synced."""
        manifest = Manifest(dict(sorted({**self._files, **shards}.items())), tensors, self._origin)
        for left in set(self.folder.glob("*" + UNFINISHED)) - {self.path(name) for name in manifest.files}:
            left.unlink()  # of a former run with other companions
        self._write(self.folder / (MANIFEST + UNFINISHED), manifest.encoded())
        sync(self.folder)
        publish(self.out, manifest)

    def fail(self, error: BaseException) -> bool:
        """After a failure: keeps what can be continued, which is told by True, and removes the rest."""
        self.journal.close()
        if (self.folder / (MANIFEST + UNFINISHED)).exists():
            return True
        # What is wrong with the input will be wrong again. Whatever else happened may be over by the next run.
        if self._origin is not None and not isinstance(error, FusionError) and Journal.begun(self.folder / JOURNAL):
            return True
        empty(self.folder)
        return False

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        """A file that is there whole or not at all."""
        aside = path.with_name(path.name + ".new")
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)


@contextmanager
def staged(out: Path, origin: Origin | None, layout: str) -> Iterator[Staging]:
    """Yields the staging folder of `out`, whose lock is held. After a failure what can be continued stays."""
    staging: Staging | None = None
    try:
        staging = Staging(out, origin, layout)
        yield staging
        staging.journal.close()
    except BaseException as error:
        kept = staging.fail(error) if staging is not None else False
        if isinstance(error, OSError):
            what = kept_note(out) if kept else "Nothing was left there."
            raise OutputError(f"{out}: could not be written ({error.strerror or error}). {what}") from error
        raise


def kept_note(out: Path) -> str:
    """What to tell of a run that was cut short: empty where nothing is kept."""
    remains = look(out).remains
    if remains is None or (remains.origin is None and remains.moving is None):
        return ""
    return f"What is done is kept in {out / PARTIAL}: the same command continues it."
