"""Where a model may be written: what is refused, what is continued, what is there already."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from fusion_bench.checkpoint.contents import PARTIAL, Contents, is_locked, look
from fusion_bench.checkpoint.folder import PICKLE_INDEX, SAFETENSORS_INDEX, listed
from fusion_bench.checkpoint.manifest import MANIFEST
from fusion_bench.checkpoint.sealed import Origin, plain
from fusion_bench.errors import OutputError

# Files that must not outlive a replaced model: a loader could prefer them.
WEIGHTS = ("model*.safetensors", SAFETENSORS_INDEX, "pytorch_model*.bin", PICKLE_INDEX, "adapter_*")

Found = Literal["nothing", "unfinished", "complete"]
"""What a run finds of its own: nothing, an output to be continued, all of it."""

_CHOOSE = "Choose another folder, or pass overwrite=true to replace it once the new one is whole."


def check_writable(out: str | Path, overwrite: bool = False, origin: Origin | None = None) -> Found:
    """Raises OutputError where a model could not be written to `out`; to be called before any work. Changes nothing.

    `origin`: what the model is made from, by which an output of the same command is known; None knows none.
    """
    out = Path(out)
    place = out
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"{out}: cannot be a folder: {place} is a file.")
    contents = look(out)
    if is_locked(out):
        raise busy(out)
    found = judge(out, contents, overwrite, origin)
    if found != "complete" and not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: no permission to write in {place}.")
    return found


def judge(out: Path, contents: Contents, overwrite: bool, origin: Origin | None) -> Found:
    """What `check_writable` says of a folder with these contents."""
    mine = None if origin is None else plain(origin)
    remains, manifest = contents.remains, contents.manifest
    others = list(contents.others)
    if mine is not None:
        others = [name for name in others if not _is_part(out / name, mine)]
    moving = remains is not None and remains.moving is not None
    if remains is not None and not remains.ours:
        raise OutputError(f"{out}: holds {PARTIAL}, which is no output's. Move it away, or choose another folder.")
    if remains is not None and mine is not None and remains.origin == mine:
        if overwrite:
            return "unfinished"
        if moving or (manifest is None and not contents.unreadable):
            return _unless(others, out, "unfinished")
    if overwrite:
        return "nothing"
    if is_complete(contents, origin):
        # Beside it may lie whatever does not change what is loaded.
        return _unless([name for name in others if any(fnmatch(name, weights) for weights in WEIGHTS)], out, "complete")
    found: Found = _unless(others, out, "nothing")
    if contents.unreadable:
        raise OutputError(f"{out}: {MANIFEST} is damaged. {_CHOOSE}")
    if remains is not None and (moving or (remains.origin is not None and manifest is None)):
        raise OutputError(
            f"{out}: holds the unfinished output of another command{_told(remains.origin, mine)}. {_CHOOSE}"
        )
    if manifest is not None and mine is not None and manifest.origin == mine:
        raise OutputError(
            f"{out}: holds the output of this command, damaged: {listed(list(contents.faults), 5)}. "
            "Pass overwrite=true to write it anew."
        )
    if manifest is not None:
        raise OutputError(f"{out}: holds the output of another command{_told(manifest.origin, mine)}. {_CHOOSE}")
    return found


def is_complete(contents: Contents, origin: Origin | None) -> bool:
    """Whether a finished output of this origin is there, each file of its size."""
    manifest, remains = contents.manifest, contents.remains
    own = manifest is not None and origin is not None and manifest.origin == plain(origin)
    return own and not contents.faults and (remains is None or remains.moving is None)


def check_space(out: Path, needed: int) -> None:
    """Raises OutputError where the disk of `out` lacks room for `needed` bytes; `.partial` counts as free."""
    place = out
    while not place.exists():
        place = place.parent
    partial = out / PARTIAL
    held = sum(file.stat().st_blocks * 512 for file in partial.iterdir()) if partial.is_dir() else 0
    free = shutil.disk_usage(place).free + held
    if free < needed:
        raise OutputError(f"{out}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left.")


def part_origin(origin: Origin, part: str) -> dict[str, Any]:
    """The origin of one of the models that a command makes together: its folder bears the name of the part."""
    return {**plain(origin), "part": part}


def busy(out: Path) -> OutputError:
    return OutputError(f"{out}: another run is writing there. Wait for it, or choose another folder.")


def _is_part(folder: Path, mine: Origin) -> bool:
    """Whether `folder` was written, or begun, as a part of the output that is asked for."""
    contents = look(folder)
    origins = [each.origin for each in (contents.manifest, contents.remains) if each is not None]
    return part_origin(mine, folder.name) in origins


def _unless(others: list[str], out: Path, found: Found) -> Found:
    if others:
        raise OutputError(
            f"{out}: holds other files ({listed(others, 5)}). Choose an empty or new folder, or pass overwrite=true."
        )
    return found


def _told(theirs: Origin | None, mine: Origin | None) -> str:
    """What the other command was, as far as it is known: its method, and in what it differs."""
    if theirs is None:
        return ""
    method = theirs.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    words = [f"method={name}"] if name else []
    if mine is not None:
        before, after = dict(_flat("", theirs)), dict(_flat("", mine))
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key) and key != "method.name"]
        shown = [f"{key}: {_short(before.get(key))}, not {_short(after.get(key))}" for key in keys]
        words += shown[:3] + (["…"] if len(shown) > 3 else [])
    return f" ({'; '.join(words)})" if words else ""


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), below)
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        for at, below in enumerate(value):
            key = below.get("name", below.get("file", at)) if isinstance(below, Mapping) else at
            yield from _flat(f"{prefix}.{key}", below)
    else:
        yield prefix, value


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:39] + "…"
