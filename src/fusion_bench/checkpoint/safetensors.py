"""Safetensors checkpoints, one file or many shards, read by position."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import DTYPE_BYTES, Checkpoint, Run, TensorInfo
from fusion_bench.checkpoint.dtypes import torch_dtype
from fusion_bench.checkpoint.folder import listed, read_config, read_index
from fusion_bench.checkpoint.safetensors_header import Header, read_header
from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    import torch


class SafetensorsFile:
    """One open safetensors file. Reads are positioned, so threads share the descriptor without a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened ({error.strerror or error}).") from None
        self.header: Header = read_header(path, self._descriptor)

    def fill(self, memory: memoryview, position: int) -> None:
        """Fills `memory` with the bytes from `position` of the file on."""
        if self._descriptor < 0:
            raise CheckpointError(f"{self.path}: read after it was closed.")
        done, wanted = 0, memory.nbytes
        while done < wanted:
            # The kernel hands over at most 2 GiB a call, and may always hand over less.
            count = os.preadv(self._descriptor, [memory[done:]], position + done)
            if count == 0:
                raise CheckpointError(f"{self.path}: ends {wanted - done} bytes early; it was cut since it was opened.")
            done += count

    def expect(self, position: int, size: int) -> None:
        """Has the kernel read ahead without waiting for it."""
        if self._descriptor >= 0 and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, position, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class SafetensorsCheckpoint(Checkpoint):
    """A safetensors file, or the shards that an index names, as one checkpoint.

    Positioned reads go straight into a tensor's own memory: resident memory is what the caller holds, not, as with a
    memory map, every page that was ever touched.
    """

    def __init__(self, path: Path, config: Mapping[str, Any] | None = None, commit: str | None = None) -> None:
        """`path`: a ``.safetensors`` file or an ``.index.json``; `config` defaults to the config.json beside it."""
        self._path = path
        self._commit = commit
        self._config = config
        self._files, where = _open_index(path) if path.name.endswith(".json") else _open_one(path)
        self._where = dict(sorted(where.items()))
        self._infos = {name: file.header.infos[name] for name, file in self._where.items()}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        import torch

        stored, begin, end = self.span(name, start, stop)
        out = torch.empty(end - begin, dtype=torch_dtype(self._infos[stored].dtype))
        self._fill(stored, begin, out)
        return out

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        stored, begin, _ = self.span(name, start, start + out.numel())
        dtype = torch_dtype(self._infos[stored].dtype)
        if out.dtype != dtype or out.ndim != 1 or not out.is_contiguous() or out.device.type != "cpu":
            raise ValueError(f"{name}: the buffer must be 1-D, contiguous, on the CPU, of dtype {dtype}")
        self._fill(stored, begin, out)

    def read_run(self, run: Run, out: torch.Tensor) -> None:
        import torch

        if not out.numel():
            return
        memory = out.detach().view(torch.uint8).numpy().data
        done = 0
        for file, position, size in self._spans(run):
            file.fill(memory[done : done + size], position)
            done += size

    def expect(self, run: Run) -> None:
        if len(run) > 1:
            return  # small tensors: the kernel's own reading ahead covers them
        for file, position, size in self._spans(run):
            file.expect(position, size)

    def _spans(self, run: Run) -> Iterator[tuple[SafetensorsFile, int, int]]:
        """File, position and bytes of the pieces; neighbours in a file come as one."""
        held, begin, end = None, 0, 0
        for name, start, stop in run:
            file = self._where[name]
            entry = DTYPE_BYTES[self._infos[name].dtype]
            position = file.header.offsets[name] + start * entry
            if file is not held or position != end:
                if held is not None and end > begin:
                    yield held, begin, end - begin
                held, begin = file, position
            end = position + (stop - start) * entry
        if held is not None and end > begin:
            yield held, begin, end - begin

    def _fill(self, stored: str, begin: int, out: torch.Tensor) -> None:
        import torch

        if not out.numel():
            return
        file = self._where[stored]
        position = file.header.offsets[stored] + begin * DTYPE_BYTES[self._infos[stored].dtype]
        file.fill(out.detach().view(torch.uint8).numpy().data, position)

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
        files = [
            {"file": f.path.name, "size": f.header.size, "mtime_ns": f.header.mtime_ns, "header": f.header.digest}
            for f in self._files
        ]
        return {"path": str(self._path.parent), "commit": self._commit, "files": files}

    def close(self) -> None:
        for file in self._files:
            file.close()


def _open_one(path: Path) -> tuple[list[SafetensorsFile], dict[str, SafetensorsFile]]:
    file = SafetensorsFile(path)
    return [file], dict.fromkeys(file.header.infos, file)


def _open_index(path: Path) -> tuple[list[SafetensorsFile], dict[str, SafetensorsFile]]:
    """The index decides which file a tensor is read from; what shards hold beyond it is ignored, as elsewhere."""
    weight_map = read_index(path)
    files = {name: SafetensorsFile(path.parent / name) for name in sorted(set(weight_map.values()))}
    missing = [f"{name} ({file})" for name, file in weight_map.items() if name not in files[file].header.infos]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} tensors are not in the shard that the index names: {listed(sorted(missing))}. "
            "Index and shards belong to different versions: fetch the model again."
        )
    return list(files.values()), {name: files[file] for name, file in weight_map.items()}
