"""JSON files that tell whether they are as they were written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_bench.checkpoint.digests import digest

_SEAL = "check"

Origin = Mapping[str, Any]
"""What an output is made from, as plain JSON: equal origins make equal outputs."""


def plain(value: Any) -> Any:
    """`value` as it comes back out of JSON: tuples are lists, unknown objects are their text."""
    return json.loads(json.dumps(value, default=str))


def sealed(value: Mapping[str, Any]) -> bytes:
    """`value` as JSON with a digest of itself; two levels are laid out one entry a line."""
    lines = [f"  {json.dumps(key)}: {_laid_out(entry)}" for key, entry in {**value, _SEAL: _digest(value)}.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def unsealed(path: Path) -> dict[str, Any]:
    """What `sealed` wrote; OSError where there is no such file, ValueError where it is not as it was written."""
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict) or value.pop(_SEAL, None) != _digest(value):
        raise ValueError(f"{path}: not as it was written")
    return value


def _laid_out(entry: Any) -> str:
    if not isinstance(entry, dict) or not entry:
        return json.dumps(entry)
    return "{\n" + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in entry.items()) + "\n  }"


def _digest(value: Mapping[str, Any]) -> str:
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hex()
