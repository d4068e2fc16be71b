"""What lies in an output folder: a finished output, the remains of one, other files. Reads only."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fusion_bench.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from fusion_bench.checkpoint.sealed import Origin, unsealed
from fusion_bench.errors import OutputError

# The folder in which everything lies until it is whole.
PARTIAL = ".partial"
# What is added there to the names of files, so that no loader takes them for weights.
UNFINISHED = ".part"
ORIGIN, JOURNAL, LOCK = "origin.json", "journal", "lock"


@dataclass(frozen=True)
class Remains:
    """What an interrupted run left in `.partial`.

    `origin` and `layout`: what was being written, None where nobody can continue it; `moving`: its manifest, once all
    is written and needs only to be moved into place; `ours`: False for a folder that some other program made.
    """

    origin: Origin | None = None
    layout: str = ""
    moving: Manifest | None = None
    ours: bool = True


@dataclass(frozen=True)
class Contents:
    """`manifest`: of a finished output; `unreadable`: there is one, and it is damaged; `faults`: files that are missing
    or of another size; `others`: files and folders that belong to no output."""

    manifest: Manifest | None = None
    unreadable: bool = False
    faults: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    remains: Remains | None = None


def look(out: Path) -> Contents:
    """What lies in `out`; OutputError where it cannot be read."""
    try:
        return _look(out) if out.is_dir() else Contents()
    except OSError as error:
        raise OutputError(f"{out}: cannot be read ({error.strerror or error}).") from None


def _look(out: Path) -> Contents:
    remains = _remains(out)
    manifest, unreadable = None, False
    try:
        manifest = read_manifest(out / MANIFEST)
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        unreadable = True
    known = {PARTIAL, MANIFEST}
    for each in (manifest, remains.moving if remains else None):
        known |= {*each.files, *each.parts} if each is not None else set()
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
    return Contents(manifest, unreadable, tuple(faults(out, manifest)), tuple(others), remains)


def faults(out: Path, manifest: Manifest | None) -> list[str]:
    """Files of an output that are missing or of another size."""
    if manifest is None:
        return []
    found = [fault for name, entry in manifest.files.items() if (fault := _fault(out / name, entry.size))]
    for part in manifest.parts:
        below = look(out / part)
        if below.manifest is None:
            found.append(f"{part} is missing" if not below.unreadable else f"{part}/{MANIFEST} is damaged")
        found += [f"{part}/{fault}" for fault in below.faults]
    return found


def is_locked(out: Path) -> bool:
    """Whether a run is writing into `out`."""
    try:
        lock = os.open(out / PARTIAL / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(lock)
    return False


def _fault(path: Path, size: int) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    found = path.stat().st_size
    return f"{path.name} has {found} bytes, not {size}" if found != size else ""


def _remains(out: Path) -> Remains | None:
    folder = out / PARTIAL
    if not folder.is_dir():
        return Remains(ours=False) if folder.exists() or folder.is_symlink() else None
    names = {entry.name for entry in folder.iterdir()}
    ours = not names or LOCK in names or ORIGIN in names
    moving = _moving(folder, out) if ours else None
    try:
        value: Mapping[str, object] = unsealed(folder / ORIGIN)
    except (OSError, ValueError):
        return Remains(moving=moving, ours=ours, origin=moving.origin if moving else None)
    origin = value.get("origin")
    return Remains(origin if isinstance(origin, dict) else None, str(value.get("layout")), moving)


def _moving(folder: Path, out: Path) -> Manifest | None:
    """The manifest of an output that is whole, some of it still in `folder`, the rest in place."""
    try:
        manifest = read_manifest(folder / (MANIFEST + UNFINISHED))
    except (OSError, ValueError):
        return None
    for name, entry in manifest.files.items():
        if _fault(folder / (name + UNFINISHED), entry.size) and _fault(out / name, entry.size):
            return None
    return manifest
