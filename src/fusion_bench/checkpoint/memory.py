"""Checkpoints over tensors that are already in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
from fusion_bench.checkpoint.dtypes import header_name
from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    import torch


class MemoryCheckpoint(Checkpoint):
    """A state dict as a checkpoint. Reads are copies on the CPU; the state dict itself is never written to.

    Names whose tensors share the same memory become aliases of the first of them, in the order of the state dict.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        config: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        what: str = "the state dict",
    ) -> None:
        _check(tensors, what)
        self._config = dict(config or {})
        self._folder = folder
        self._identity = dict(identity or {})
        first: dict[tuple[object, ...], str] = {}
        aliases: dict[str, str] = {}
        stored: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            kept = first.setdefault(_memory(tensor), name) if tensor.numel() else name
            if kept == name:
                stored[name] = tensor.detach()
            else:
                aliases[name] = kept
        self._tensors = dict(sorted(stored.items()))
        self._aliases = dict(sorted(aliases.items()))
        self._infos = {
            name: TensorInfo(header_name(tensor.dtype, f"{what}: {name!r}"), tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        }

    @classmethod
    def of_module(cls, module: torch.nn.Module) -> MemoryCheckpoint:
        """The parameters and persistent buffers of a module, with its config where it has one."""
        config = getattr(module, "config", None)
        to_dict = getattr(config, "to_dict", None)
        return cls(module.state_dict(), to_dict() if callable(to_dict) else None, what=type(module).__name__)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    @property
    def aliases(self) -> Mapping[str, str]:
        return MappingProxyType(self._aliases)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        stored, begin, end = self.span(name, start, stop)
        return self._part(stored, begin, end).to(device="cpu", copy=True)

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        stored, begin, end = self.span(name, start, start + out.numel())
        out.copy_(self._part(stored, begin, end))

    def _part(self, stored: str, begin: int, end: int) -> torch.Tensor:
        tensor = self._tensors[stored]
        if tensor.is_contiguous():
            return tensor.view(-1)[begin:end]
        # Only the rows that are asked for are made contiguous: slicing a transposed view stays linear.
        width = max(1, tensor.numel() // tensor.shape[0])
        rows = slice(begin // width, -(-end // width))
        return tensor[rows].reshape(-1)[begin - rows.start * width : end - rows.start * width]

    @property
    def config(self) -> Mapping[str, Any]:
        return MappingProxyType(self._config)

    @property
    def folder(self) -> Path | None:
        return self._folder

    @property
    def identity(self) -> Mapping[str, Any]:
        return MappingProxyType(self._identity)


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _check(tensors: Mapping[str, torch.Tensor], what: str) -> None:
    import torch

    others = {name: type(value).__name__ for name, value in tensors.items() if not isinstance(value, torch.Tensor)}
    if others:
        given = ", ".join(f"{name!r} is a {kind}" for name, kind in list(others.items())[:5])
        raise CheckpointError(f"{what}: not every entry is a tensor ({given}). Give a state dict.")
    unreal = [name for name, value in tensors.items() if value.is_meta or value.layout != torch.strided]
    if unreal:
        raise CheckpointError(f"{what}: {unreal[0]!r} has no dense values (meta or sparse). Load the weights first.")
