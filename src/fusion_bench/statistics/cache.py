"""Keeping what was measured on disk, by what decides its values."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.sealed import plain
from fusion_bench.checkpoint.verify import verify
from fusion_bench.checkpoint.writer import save
from fusion_bench.errors import FusionError
from fusion_bench.fitting import Fitting
from fusion_bench.statistics.base import Statistics

if TYPE_CHECKING:
    import torch

# A number to raise where the meaning of what is kept changes: older files are then measured anew.
_VERSION = 1
_RECORD = "statistics.json"
# Statistics of several models stand side by side: larger ones that are not kept go through temporary files.
_IN_MEMORY = 16 * 2**20


@dataclass(frozen=True)
class Measured:
    """What a measurement gives: tensors by name, parameter -> name, the record."""

    tensors: Mapping[str, torch.Tensor]
    index: Mapping[str, str]
    record: Mapping[str, Any]


def kept(
    fitting: Fitting, models: Sequence[str], settings: Mapping[str, Any], measure: Callable[[], Measured]
) -> Statistics:
    """The statistics that `settings` and the named models with their data decide: from the disk, else measured now.

    Damaged files are measured anew. Without an identity of every model, or digests of the data, nothing is kept.
    """
    origin = _origin(fitting, models, settings)
    folder = None if origin is None or fitting.cache is None else _folder(fitting.cache, origin)
    if folder is not None and origin is not None and (found := _found(folder, origin)) is not None:
        return replace(found, record={**found.record, "from_cache": True})
    measured = measure()
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in measured.tensors.values())
    record = {**measured.record, "bytes": nbytes}
    if folder is not None and origin is not None:
        try:
            _save(measured, record, folder, origin)
            return Statistics(open_checkpoint(folder), measured.index, record)
        except (FusionError, OSError) as fault:
            # A full disk, or another process that writes the same: the numbers are here all the same.
            record["not_kept"] = str(fault)
    if nbytes <= _IN_MEMORY:
        return Statistics(MemoryCheckpoint(measured.tensors), measured.index, record)
    return _spilled(measured, record)


def _origin(fitting: Fitting, models: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    # Tensors in memory say nothing of what they are: their identity is empty.
    if fitting.identity is None or not all(fitting.identity.get(name) for name in models):
        return None
    digests = [fitting.tasks[name].digest for name in models]
    if not all(digests):
        return None
    members = [fitting.identity[name] for name in models]
    made: dict[str, Any] = plain({"version": _VERSION, "settings": settings, "models": members, "data": digests})
    return made


def _folder(cache: Path, origin: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:40]
    return cache / "statistics" / key


def _found(folder: Path, origin: Mapping[str, Any]) -> Statistics | None:
    try:
        told = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if told["origin"] != origin or not verify(folder).whole:
            return None
        return Statistics(open_checkpoint(folder), told["index"], told["record"])
    except (FusionError, OSError, ValueError, KeyError, TypeError):
        return None


def _save(measured: Measured, record: Mapping[str, Any], folder: Path, origin: Mapping[str, Any]) -> None:
    told = json.dumps({"origin": origin, "index": measured.index, "record": record}, indent=1)
    folder.parent.mkdir(parents=True, exist_ok=True)
    files = {_RECORD: told}
    save(MemoryCheckpoint(measured.tensors), folder, shard_bytes=None, extra_files=files, overwrite=True)


def _spilled(measured: Measured, record: Mapping[str, Any]) -> Statistics:
    """In a temporary folder that goes when the statistics do."""
    folder = Path(tempfile.mkdtemp(prefix="fusion_bench-"))
    try:
        save(MemoryCheckpoint(measured.tensors), folder / "statistics", shard_bytes=None)
        tensors = open_checkpoint(folder / "statistics")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(tensors, shutil.rmtree, folder, ignore_errors=True)
    return Statistics(tensors, measured.index, record)
