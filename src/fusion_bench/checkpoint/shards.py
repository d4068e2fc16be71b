"""The layout of safetensors output: which tensor goes where, decided before any value is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from fusion_bench.checkpoint.base import DTYPE_BYTES, TensorInfo
from fusion_bench.checkpoint.folder import SAFETENSORS
from fusion_bench.errors import ConfigError

# What transformers writes by default.
SHARD_BYTES = 5 * 10**9
_ALIGNMENT = 8


@dataclass(frozen=True)
class Shard:
    """One output file: its header (length prefix included) and the offset of each tensor from the file's start."""

    file: str
    header: bytes
    offsets: Mapping[str, int]
    size: int


def plan_shards(infos: Mapping[str, TensorInfo], shard_bytes: int | None = SHARD_BYTES) -> list[Shard]:
    """Fills shards with tensors in the order of their names; a larger tensor has a shard to itself.

    `shard_bytes`: bytes of tensor data a file, None for a single file.
    """
    if shard_bytes is not None and shard_bytes <= 0:
        raise ConfigError(f"shard_bytes={shard_bytes}: give a number of bytes above zero (5000000000 is 5 GB).")
    groups: list[dict[str, TensorInfo]] = [{}]
    filled = 0
    for name in sorted(infos):
        size = infos[name].nbytes
        if shard_bytes is not None and groups[-1] and filled + size > shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = infos[name]
        filled += size
    if len(groups) == 1:
        return [_layout(SAFETENSORS, groups[0])]
    count = len(groups)
    return [_layout(f"model-{at:05d}-of-{count:05d}.safetensors", group) for at, group in enumerate(groups, 1)]


def index_of(shards: list[Shard], infos: Mapping[str, TensorInfo]) -> bytes:
    """The index that names the shard of every tensor."""
    weight_map = {name: shard.file for shard in shards for name in shard.offsets}
    total = sum(info.nbytes for info in infos.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()


def _layout(file: str, infos: Mapping[str, TensorInfo]) -> Shard:
    # Wide dtypes first: then every tensor starts at a multiple of its entry size, which memory maps need.
    ordered = sorted(infos, key=lambda name: (-DTYPE_BYTES[infos[name].dtype], name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    position = 0
    for name in ordered:
        begins[name] = position
        end = position + infos[name].nbytes
        entries[name] = {
            "dtype": infos[name].dtype, "shape": list(infos[name].shape), "data_offsets": [position, end]
        }  # fmt: skip
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return Shard(file, header, {name: len(header) + begin for name, begin in begins.items()}, len(header) + position)
