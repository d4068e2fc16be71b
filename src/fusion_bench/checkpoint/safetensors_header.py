"""The header of one safetensors file, checked in full."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fusion_bench.checkpoint.base import DTYPE_BYTES, TensorInfo
from fusion_bench.errors import CheckpointError

# The format's own bound on a header; anything longer is a file of another kind.
MAX_HEADER_BYTES = 100_000_000
LENGTH_BYTES = 8

_Contents = tuple[Mapping[str, TensorInfo], Mapping[str, int], Mapping[str, str], str]
_LATELY: dict[tuple[bytes, int], _Contents] = {}
_KEPT = 4


@dataclass(frozen=True, slots=True)
class Header:
    """`infos` and `offsets` by tensor name in file order; offsets count from the start of the file."""

    infos: Mapping[str, TensorInfo]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str]
    size: int
    mtime_ns: int
    digest: str


def read_header(path: Path, descriptor: int) -> Header:
    """Parses the header of the open file. Raises CheckpointError naming the file and the first thing wrong with it."""
    status = os.fstat(descriptor)
    raw = os.pread(descriptor, LENGTH_BYTES, 0)
    if len(raw) < LENGTH_BYTES:
        raise _damaged(path, f"it has {status.st_size} bytes, too few for a safetensors header")
    length = int.from_bytes(raw, "little")
    if length > MAX_HEADER_BYTES or LENGTH_BYTES + length > status.st_size:
        fault = f"its header claims {length} bytes, the file has {status.st_size}"
        raise _damaged(path, fault, "cut off, or not safetensors")
    text = _read_exactly(path, descriptor, length)
    infos, offsets, metadata, digest = _contents(path, text, status.st_size)
    return Header(infos, offsets, metadata, status.st_size, status.st_mtime_ns, digest)


def _contents(path: Path, text: bytes, size: int) -> _Contents:
    """What the header `text` of a file of `size` bytes says. The experts of a pool mostly share theirs, parsed once."""
    key = (text, size)
    if key not in _LATELY:
        metadata, tensors = _parse(path, text)
        start = LENGTH_BYTES + len(text)
        found: _Contents = (*_layout(path, tensors, start, size - start), metadata, _digest(text))
        while len(_LATELY) >= _KEPT:
            _LATELY.pop(next(iter(_LATELY)), None)
        _LATELY[key] = found
        return found
    return _LATELY[key]


def _read_exactly(path: Path, descriptor: int, length: int) -> bytes:
    parts, position = [], LENGTH_BYTES
    while position < LENGTH_BYTES + length:
        part = os.pread(descriptor, LENGTH_BYTES + length - position, position)
        if not part:
            raise _damaged(path, "it ends inside its header", "cut off")
        parts.append(part)
        position += len(part)
    return b"".join(parts)


def _digest(text: bytes) -> str:
    import hashlib

    return "sha256:" + hashlib.sha256(text).hexdigest()


def _parse(path: Path, text: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise _damaged(path, f"its header names {next(n for n in names if names.count(n) > 1)!r} twice")
        return found

    if not text.startswith(b"{"):
        raise _damaged(path, "its header does not begin with '{'", "not a safetensors file")
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from None
    metadata = parsed.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its __metadata__ is not a mapping from text to text")
    return metadata, parsed


def _layout(path: Path, tensors: dict[str, Any], start: int, size: int) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    infos: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in tensors.items():
        infos[name], begin, end = _entry(path, name, entry)
        spans.append((begin, end, name))
    spans.sort()
    position, before = 0, "the header"
    for begin, end, name in spans:
        if begin != position:
            fault = "overlaps" if begin < position else f"leaves {begin - position} bytes unused after"
            raise _damaged(path, f"tensor {name!r} {fault} {before!r}")
        position, before = end, name
    if position != size:
        fault = "cut off" if position > size else "more data than its header describes"
        raise _damaged(path, f"its tensors take {position} bytes, the file holds {size}", fault)
    return infos, {name: start + begin for begin, _, name in spans}


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(path, f"tensor {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(_is_count(length) for length in shape):
        raise _damaged(path, f"tensor {name!r} has shape {shape!r}, not a list of lengths")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise _damaged(path, f"tensor {name!r} has data_offsets {offsets!r}, not [begin, end]")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        accepted = ", ".join(DTYPE_BYTES)
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype!r}, which is not read. Accepted: {accepted}.")
    begin, end = offsets
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        fault = f"({dtype}, shape {shape}) needs {expected} bytes, its offsets give {end - begin}"
        raise _damaged(path, f"tensor {name!r} {fault}")
    return TensorInfo(dtype, tuple(shape)), begin, end


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _damaged(path: Path, fault: str, guess: str = "") -> CheckpointError:
    kind = f" ({guess})" if guess else ""
    return CheckpointError(f"{path}: damaged safetensors file{kind}: {fault}. Fetch it again.")
