"""Checkpoints in torch's own format, read without executing anything they contain."""

from __future__ import annotations

import os
import pickle
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
from fusion_bench.checkpoint.folder import listed, read_config, read_index
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# How torch names what a file wants to have imported.
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


class PickleCheckpoint(Checkpoint):
    """``pytorch_model.bin``, a ``.pt`` file, or the shards that an index names; ``{'state_dict': ...}`` is unwrapped.

    Names, shapes and aliases stand inside the pickle, so even headers need torch here; values are mapped from disk.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any] | None = None,
        commit: str | None = None,
        pickled_modules: bool = False,
    ) -> None:
        """`pickled_modules`: also of a file that holds a whole module the tensors are read; its code is not run."""
        self._path = path
        self._pickled_modules = pickled_modules
        self._commit = commit
        self._config = config
        self._lock = threading.Lock()
        self._loaded: MemoryCheckpoint | None = None
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file.")
        self._weight_map = read_index(path) if path.name.endswith(".json") else None

    @property
    def _tensors(self) -> MemoryCheckpoint:
        with self._lock:
            if self._loaded is None:
                self._loaded = MemoryCheckpoint(self._load(), what=str(self._path))
            return self._loaded

    def _load(self) -> dict[str, torch.Tensor]:
        if self._weight_map is None:
            return dict(load_weights(self._path, self._pickled_modules))
        shards = {file: load_weights(self._path.parent / file) for file in sorted(set(self._weight_map.values()))}
        missing = [f"{name} ({file})" for name, file in self._weight_map.items() if name not in shards[file]]
        if missing:
            raise CheckpointError(
                f"{self._path}: {len(missing)} tensors are not in the shard that the index names: "
                f"{listed(sorted(missing))}. Fetch the model again."
            )
        return {name: shards[file][name] for name, file in self._weight_map.items()}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._tensors.infos

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._tensors.aliases

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._tensors.read(name, start, stop)

    @property
    def config(self) -> Mapping[str, Any]:
        if self._config is None:
            self._config = read_config(self._path.parent)
        return self._config

    @property
    def folder(self) -> Path | None:
        return self._path.parent

    @property
    def identity(self) -> Mapping[str, Any]:
        names = [self._path.name] if self._weight_map is None else sorted(set(self._weight_map.values()))
        stats = [(name, os.stat(self._path.parent / name)) for name in names]
        files = [{"file": name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for name, stat in stats]
        return {"path": str(self._path.parent), "commit": self._commit, "files": files}

    def close(self) -> None:
        self._loaded = None


def load_weights(path: Path, pickled_modules: bool = False) -> Mapping[str, torch.Tensor]:
    """The state dict in a torch file, mapped from disk where its format allows it.

    `pickled_modules`: of a file that holds a whole module, its tensors, read as `load_module_weights` does.
    """
    import torch

    try:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            # Files from before torch 1.6 are no archives and cannot be mapped.
            if "mmap" not in str(error):
                raise
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if pickled_modules and isinstance(error, pickle.UnpicklingError):
            from fusion_bench.checkpoint.pickled_module import load_module_weights

            return load_module_weights(path)
        raise CheckpointError(_refusal(path, error)) from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}, not a state dict. Save model.state_dict().")
    return found


def _refusal(path: Path, error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    named = _GLOBAL.search(str(error))
    if named is None:
        return (
            f"{path}: cannot be read as plain weights ({type(error).__name__}: {first}). Files that need their own "
            "code to load are not executed: save the state dict as safetensors with the program that made it."
        )
    return (
        f"{path}: cannot be read as plain weights: it names {named[1]}, code of the program that made it, which is not "
        "executed. Save the state dict as safetensors with that program. If the file is a whole pickled module, a "
        "pool of type task_vectors reads its tensors, without running the code, with modelpool.pickled_modules=true."
    )
