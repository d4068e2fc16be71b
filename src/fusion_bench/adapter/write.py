"""Writing an adapter as a folder that PEFT loads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_bench.adapter import naming
from fusion_bench.adapter.adapter import Adapter, Target
from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.contents import look
from fusion_bench.checkpoint.digests import digest
from fusion_bench.checkpoint.dtypes import parse_dtype
from fusion_bench.checkpoint.folder import ADAPTER_CONFIG
from fusion_bench.checkpoint.layout import Layout
from fusion_bench.checkpoint.manifest import FileEntry
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.output import check_space, check_writable, judge
from fusion_bench.checkpoint.sealed import Origin
from fusion_bench.checkpoint.shards import plan_shards
from fusion_bench.checkpoint.staging import claimed, staged
from fusion_bench.checkpoint.stream import runs_of
from fusion_bench.checkpoint.views import Cast
from fusion_bench.checkpoint.weights import write_tensors
from fusion_bench.checkpoint.writer import Saved
from fusion_bench.progress import Progress

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_SPARE_BYTES = 2**20


def save_adapter(
    adapter: Adapter,
    out: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    origin: Origin | None = None,
    card: str | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Saved:
    """Writes adapter_model.safetensors and adapter_config.json into the folder `out`, for PEFT 0.18 or newer.

    The scaling is inside B, so that ``lora_alpha`` equals the rank; modules of another rank than most stand in
    ``rank_pattern``. `dtype`: of the tensors (float32, or float64 over such a base, where None). The base is called by
    its name on the Hub, a local one by its path from `out`. `origin`, `overwrite`: as for a model
    (:func:`fusion_bench.checkpoint.writer.save`). The folder appears whole or not at all. Raises OutputError,
    ConfigError.
    """
    out = Path(out)
    progress = progress or Progress(enabled=False)
    written: Checkpoint = MemoryCheckpoint(_tensors(adapter))
    written = written if dtype is None else Cast(written, parse_dtype(dtype))
    settings = naming.settings(adapter)
    settings["base_model_name_or_path"], settings["revision"] = _base_name(adapter, out)
    shard = replace(plan_shards(written.infos, None)[0], file=ADAPTER_WEIGHTS)
    size = sum(info.nbytes for info in written.infos.values())
    if check_writable(out, overwrite, origin) == "complete":
        return Saved("complete", size)
    with claimed(out):
        judge(out, look(out), overwrite, origin)
        check_space(out, shard.size + _SPARE_BYTES)
        layout = Layout(written.infos, [shard], runs_of(written, list(shard.offsets), None))
        with staged(out, origin, layout.digest) as staging:
            digests, reused = write_tensors(written, layout, staging, threads, progress)
            staging.add(ADAPTER_CONFIG, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
            if card is not None:
                staging.add("README.md", card.encode())
            head = FileEntry(shard.size, digest(shard.header).hex(), len(shard.header))
            staging.finish({ADAPTER_WEIGHTS: head}, layout.entries(digests))
    return Saved("continued" if reused else "written", reused)


def _tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The tensors under the names of PEFT's files, in the shapes of its layers."""
    tensors: dict[str, torch.Tensor] = {}
    for name, factors in adapter.factors.items():
        target = adapter.targets[name]
        tensors[naming.file_name(target, "A")] = _down(target, factors.A)
        tensors[naming.file_name(target, "B")] = _up(target, factors.B)
    for name, vector in adapter.vectors.items():
        target = adapter.targets[name]
        side = (1, -1) if target.feedforward else (-1, 1)
        flat = vector.factor.reshape(side)
        if len(target.shape) > 2:
            flat = vector.factor.reshape(1, -1, *[1] * (len(target.shape) - 2))
        tensors[naming.file_name(target, "vector")] = flat
    _, places = naming.saved_modules(adapter)
    for place, name in places.items():
        stored = adapter.base.stored(name)
        whole = adapter.saved[stored] if stored in adapter.saved else adapter.base[stored]
        tensors[place] = whole.clone()  # tied names are separate tensors in an adapter
    return tensors


def _down(target: Target, values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *target.shape[1:]) if len(target.shape) > 2 else values


def _up(target: Target, values: torch.Tensor) -> torch.Tensor:
    return values.reshape(*values.shape, *[1] * (len(target.shape) - 2)) if len(target.shape) > 2 else values


def _base_name(adapter: Adapter, out: Path) -> tuple[str | None, str | None]:
    """The base's name on the Hub and its commit, or its path from `out`; nothing for a base in memory."""
    if adapter.reference is not None:
        return adapter.reference
    identity: Mapping[str, object] = adapter.base.identity
    where = identity.get("path")
    if not isinstance(where, str):
        return None, None
    path = Path(where).absolute()
    cached = next((part for part in path.parts if part.startswith("models--")), None)
    if cached is not None and identity.get("commit"):
        return cached.removeprefix("models--").replace("--", "/"), str(identity["commit"])
    return os.path.relpath(path.resolve(), out.absolute().resolve()), None
