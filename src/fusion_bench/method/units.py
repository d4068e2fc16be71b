"""How a model is cut into the slices that are merged: by names, shapes, dtypes and the method alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fusion_bench.checkpoint.base import BLOCK, Run
from fusion_bench.checkpoint.stream import SMALL, runs_of
from fusion_bench.method.base import Granularity, Inputs, TensorMethod


@dataclass(frozen=True, slots=True)
class Unit:
    """Entries that are merged together: a slice of one tensor, or several small tensors for a pointwise method."""

    index: int
    run: Run
    granularity: Granularity

    @property
    def numel(self) -> int:
        return sum(stop - start for _, start, stop in self.run)


class Units:
    """All units of a merge. The same for files and memory, and for any number of threads or shards."""

    def __init__(self, method: TensorMethod, inputs: Inputs) -> None:
        self._method = method
        self._inputs = inputs
        self._known: dict[str, Granularity] = {}

    def step(self, name: str) -> int:
        """Entries of tensor `name` that one unit holds at most."""
        numel = max(1, self._inputs.alignment.infos[name].numel)
        granularity = self._granularity(name)
        if granularity == "tensor":
            return numel
        if granularity == "row":
            row = self.row(name)
            return max(1, BLOCK // row) * row
        return BLOCK

    def _granularity(self, name: str) -> Granularity:
        if name not in self._known:
            self._known[name] = self._method.granularity(name, self._inputs)
        return self._known[name]

    def row(self, name: str) -> int:
        """Entries of a row: the last dimension; a tensor of one dimension is one row."""
        shape = self._inputs.alignment.infos[name].shape
        return max(1, shape[-1] if len(shape) > 1 else self._inputs.alignment.infos[name].numel)

    @cached_property
    def all(self) -> list[Unit]:
        names = self._inputs.alignment.floating
        if self._method.pointwise:
            runs = runs_of(self._inputs.reference, names)
            return [Unit(index, run, "element") for index, run in enumerate(runs)]
        found: list[Unit] = []
        for name in names:
            numel, step = self._inputs.alignment.infos[name].numel, self.step(name)
            granularity = self._granularity(name)
            for start in range(0, max(1, numel), step):
                found.append(Unit(len(found), ((name, start, min(start + step, numel)),), granularity))
        return found

    @cached_property
    def _first(self) -> dict[str, tuple[int, int]]:
        """Name -> its first unit, and where it begins in it."""
        found: dict[str, tuple[int, int]] = {}
        for unit in self.all:
            offset = 0
            for name, start, stop in unit.run:
                found.setdefault(name, (unit.index, offset))
                offset += stop - start
        return found

    def covering(self, name: str, start: int, stop: int) -> Iterator[tuple[Unit, int, int]]:
        """The units that hold entries ``start:stop`` of `name`, each with the part of its entries that is asked for."""
        first, offset = self._first[name]
        unit = self.all[first]
        if len(unit.run) > 1 or self._inputs.alignment.infos[name].numel <= SMALL:
            yield unit, offset + start, offset + stop
            return
        step = self.step(name)
        for number in range(start // step, max(start // step + 1, -(-stop // step))):
            unit = self.all[first + number]
            begin, end = unit.run[0][1], unit.run[0][2]
            yield unit, max(start, begin) - begin, min(stop, end) - begin
