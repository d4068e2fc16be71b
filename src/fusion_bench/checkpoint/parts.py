"""Outputs that one command makes together, each in a sub-folder that bears the name of its part."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fusion_bench.checkpoint.manifest import MANIFEST, Manifest, is_plain_name
from fusion_bench.checkpoint.output import part_origin
from fusion_bench.checkpoint.publish import remove_former, sync
from fusion_bench.checkpoint.sealed import Origin, plain
from fusion_bench.errors import OutputError

__all__ = ["part_origin", "write_parts_manifest"]


def write_parts_manifest(out: str | Path, parts: Sequence[str], origin: Origin | None = None) -> None:
    """Says in `out` that it holds the outputs `parts`; to be called when all of them are whole.

    Each is saved into ``out / part`` with the origin ``part_origin(origin, part)``: by it `check_writable` knows the
    parts of a command that was cut short. What a former output left in `out` itself is removed.
    """
    out = Path(out)
    wrong = [part for part in parts if not is_plain_name(part)]
    if wrong:
        raise OutputError(f"{out}: {wrong[0]!r} is no name for a part of an output.")
    aside = out / f".{MANIFEST}.new"
    with open(aside, "wb") as file:
        file.write(Manifest(origin=None if origin is None else plain(origin), parts=tuple(parts)).encoded())
        file.flush()
        os.fsync(file.fileno())
    remove_former(out, keep=set(parts))
    os.replace(aside, out / MANIFEST)
    sync(out)
