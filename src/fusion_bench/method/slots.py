"""Slices of the base and of the models, read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from fusion_bench.checkpoint.base import Checkpoint, Run
from fusion_bench.checkpoint.dtypes import torch_dtype
from fusion_bench.method.units import Unit
from fusion_bench.ops.scratch import SCRATCH

if TYPE_CHECKING:
    from fusion_bench.method.inputs import Granularity, Inputs

# A sampled pass reads this many pieces of each slice: several short ones, since neighbouring entries resemble another.
_PIECES = 4
_LEAST = 256


class StreamSlot:
    """A slice of all members; one worker uses it and drops it."""

    def __init__(
        self, inputs: Inputs, dtype: torch.dtype, unit: Unit, row: int, task: str | None = None, covers: int = 0
    ) -> None:
        self.index, self.task, self.seed = unit.index, task, inputs.seed
        self.run: Run = unit.run
        single = len(unit.run) == 1
        self.name, self.start, self.stop = unit.run[0] if single else ("", 0, unit.numel)
        self.covers = covers or unit.numel
        self.shape = inputs.alignment.infos[self.name].shape if single else (unit.numel,)
        self.model_names = tuple(inputs.models)
        self._inputs = inputs
        self._dtype = dtype
        self._form: tuple[int, ...] = (-1,)
        if unit.granularity == "tensor" and unit.numel == inputs.alignment.infos[self.name].numel:
            self._form = self.shape
        elif unit.granularity == "row":
            self._form = (unit.numel // row, row)

    @cached_property
    def base(self) -> torch.Tensor:
        reference = self._inputs.base
        assert reference is not None, "the method does not declare needs_base"
        return self._read(reference, "base").view(self._form)

    @property
    def models(self) -> Iterator[torch.Tensor]:
        for model in self._inputs.models.values():
            yield self._model(model).view(self._form)

    @property
    def deltas(self) -> Iterator[torch.Tensor]:
        base = self.base
        for model in self._inputs.models.values():
            if self._adapts(model):
                yield self._adapted(model.change).view(self._form)
            else:
                values = self._read(model, "model").view(self._form)
                yield torch.sub(values, base, out=values)

    def _model(self, model: Checkpoint) -> torch.Tensor:
        return self._adapted(model.apply_delta) if self._adapts(model) else self._read(model, "model")

    def _adapts(self, model: Checkpoint) -> bool:
        return model.base is not None and model.base is self._inputs.base

    def _adapted(self, made: Callable[[str, int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What an adapter over the pool's base makes of the base's slice, which is at hand."""
        base = self.base.reshape(-1).cpu()
        parts, done = [], 0
        for name, start, stop in self.run:
            parts.append(made(name, start, base[done : done + stop - start]).to(self._dtype))
            done += stop - start
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self._inputs.device)

    def _read(self, source: Checkpoint, role: str) -> torch.Tensor:
        numel = sum(stop - start for _, start, stop in self.run)
        device = torch.device(self._inputs.device)
        infos = source.infos
        stored = {(infos[name] if name in infos else source.info(name)).dtype for name, _, _ in self.run}
        if len(stored) == 1:
            kind = torch_dtype(stored.pop())
            raw = SCRATCH.take(role, numel, kind)
            source.read_run(self.run, raw)
            if kind == self._dtype and device.type == "cpu":
                return raw
            return SCRATCH.take(role + " wide", numel, self._dtype, device).copy_(raw)
        wide = SCRATCH.take(role + " wide", numel, self._dtype, device)
        done = 0
        for name, start, stop in self.run:
            wide[done : done + stop - start].copy_(source.read(name, start, stop))
            done += stop - start
        return wide


def pieces(unit: Unit, share: float, row: int) -> Iterator[tuple[Unit, int]]:
    """Short units that stand for `unit` in a sample of about `share` of the entries, with the entries each covers.

    They are flat, or whole rows where rows must stay together.
    """
    grain = row if unit.granularity == "row" else 1
    kind: Granularity = "row" if unit.granularity == "row" else "element"
    if len(unit.run) > 1:
        yield unit, unit.numel
        return
    name, begin, _ = unit.run[0]
    part = max(1, unit.numel // _PIECES // grain) * grain
    length = max(-(-_LEAST // grain), int(part * share) // grain) * grain
    if length * _PIECES >= unit.numel:
        yield Unit(unit.index, unit.run, kind), unit.numel
        return
    for number in range(_PIECES):
        # At different depths, so that a regular layout is not sampled in one column.
        shift = (unit.index * 7919 + number * 104729) % ((part - length) // grain + 1) * grain
        start = begin + number * part + shift
        yield Unit(unit.index, ((name, start, start + length),), kind), part
