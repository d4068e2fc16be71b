"""A checkpoint whose tensors come from several others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import FLOATING, Checkpoint, Run, TensorInfo
from fusion_bench.checkpoint.dtypes import torch_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor comes from: `name` in `checkpoint`, its entries times `scale` (floating tensors alone)."""

    checkpoint: Checkpoint
    name: str
    scale: float = 1.0


class Gathered(Checkpoint):
    """Tensors by new name, each read from its origin when asked for; nothing is held.

    `like`: the checkpoint whose files beside the weights (tokenizer, generation settings) belong to this one. `dtypes`:
    dtypes by new name; a tensor is stored in the origin's where it has none. A product with a scale is computed in
    float32 or wider and rounded once. Several names may show one origin; only `aliases` are tied.
    """

    def __init__(
        self,
        origins: Mapping[str, Origin],
        config: Mapping[str, Any],
        like: Checkpoint,
        aliases: Mapping[str, str] | None = None,
        dtypes: Mapping[str, str] | None = None,
    ) -> None:
        self._origins = dict(sorted(origins.items()))
        self._config = dict(config)
        self._like = like
        self._aliases = dict(sorted((aliases or {}).items()))
        given = dtypes or {}
        self._infos = {
            name: TensorInfo(given.get(name, info.dtype) if info.dtype in FLOATING else info.dtype, info.shape)
            for name, info in ((name, o.checkpoint.info(o.name)) for name, o in self._origins.items())
        }

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    @property
    def aliases(self) -> Mapping[str, str]:
        return MappingProxyType(self._aliases)

    @property
    def config(self) -> Mapping[str, Any]:
        return MappingProxyType(self._config)

    @property
    def folder(self) -> Path | None:
        return self._like.folder

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"members": [member.identity for member in self._members()]}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        stored, begin, end = self.span(name, start, stop)
        origin = self._origins[stored]
        values = origin.checkpoint.read(origin.name, begin, end)
        wanted = torch_dtype(self._infos[stored].dtype)
        if origin.scale != 1 and values.is_floating_point():
            wide = values.double() if values.element_size() == 8 else values.float()
            values = wide.mul_(origin.scale)
        return values.to(wanted)

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        stored, begin, end = self.span(name, start, start + out.numel())
        origin = self._origins[stored]
        if origin.scale == 1 and origin.checkpoint.info(origin.name) == self._infos[stored]:
            origin.checkpoint.read_into(origin.name, begin, out)
        else:
            out.copy_(self.read(stored, begin, end))

    def step(self, name: str) -> int:
        origin = self._origins[self.stored(name)]
        return origin.checkpoint.step(origin.name)

    def expect(self, run: Run) -> None:
        for name, start, stop in run:
            origin = self._origins[self.stored(name)]
            origin.checkpoint.expect(((origin.name, start, stop),))

    def close(self) -> None:
        for member in self._members():
            member.close()

    def _members(self) -> Iterable[Checkpoint]:
        return {id(origin.checkpoint): origin.checkpoint for origin in self._origins.values()}.values()
