"""The small JSON files beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_bench.errors import CheckpointError

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError when the file is missing, no JSON, or not an object."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}). Fetch it again.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: holds a {type(parsed).__name__}, not a JSON object. Fetch it again.")
    return parsed


def read_config(folder: Path) -> Mapping[str, Any]:
    """The config.json of a model folder; empty when there is none."""
    path = folder / CONFIG
    return read_json(path) if path.is_file() else {}


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name out of the index of a sharded checkpoint; every shard named lies in its folder."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{path}: has no weight_map from tensor name to file name. Fetch it again.")
    files = sorted(set(weight_map.values()))
    # A file name out of somebody else's index must not reach outside its own folder.
    outside = [file for file in files if Path(file).name != file or file in ("", ".", "..")]
    if outside:
        raise CheckpointError(f"{path}: names files outside its own folder: {listed(outside)}.")
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(files)} shards are missing: {listed(missing)}. Fetch the model again."
        )
    return weight_map


def listed(words: list[str], limit: int = 20) -> str:
    """The first `limit` words, and how many more there are."""
    rest = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {rest} more" if rest > 0 else "")
