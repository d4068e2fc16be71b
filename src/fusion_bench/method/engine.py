"""Streaming execution of a TensorMethod: the merge as a lazy checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any

import torch

from fusion_bench.checkpoint.base import Checkpoint, Run, TensorInfo
from fusion_bench.checkpoint.dtypes import torch_dtype
from fusion_bench.errors import NonFiniteError
from fusion_bench.method.base import Inputs, TensorMethod
from fusion_bench.method.budget import FIXED, Gate, slice_bytes
from fusion_bench.method.configs import config_remarks
from fusion_bench.method.slots import StreamSlot, pieces
from fusion_bench.method.units import Unit, Units
from fusion_bench.parallel import one_torch_thread, ordered_map

_SAMPLE_ENTRIES = 1 << 18
_KEPT_ENTRIES = 1 << 22


class MergedCheckpoint(Checkpoint):
    """What a TensorMethod makes of its inputs, computed slice by slice when read.

    Whole-model passes (`survey`) run once, at the first read. Values depend on the inputs, the method and the seed
    alone: not on the order, the number or the size of the reads, nor on the number of threads.
    """

    def __init__(self, method: TensorMethod, inputs: Inputs) -> None:
        self.method = method
        self.inputs = inputs
        self.task: str | None = None
        self._survey = _Survey(self)
        self._units = Units(method, inputs)
        self._gate = Gate(max(1, inputs.budget - FIXED - method.holds(inputs)))
        self._last = threading.local()

    def for_task(self, task: str) -> MergedCheckpoint:
        """The same merge for the task of one model; what was surveyed is shared."""
        other = MergedCheckpoint(self.method, self.inputs)
        other.task, other._survey, other._gate = task, self._survey, self._gate
        return other

    @cached_property
    def infos(self) -> Mapping[str, TensorInfo]:
        dtype = self.inputs.dtype
        return {
            name: TensorInfo(dtype, info.shape) if dtype and info.floating else info
            for name, info in self.inputs.alignment.infos.items()
        }

    @property
    def aliases(self) -> Mapping[str, str]:
        stored = self.infos
        return {alias: name for alias, name in self.inputs.reference.aliases.items() if alias not in stored}

    @property
    def config(self) -> Mapping[str, Any]:
        return self.inputs.reference.config

    @property
    def folder(self) -> Any:
        return self.inputs.reference.folder

    @property
    def identity(self) -> Mapping[str, Any]:
        members = {name: model.identity for name, model in self.inputs.models.items()}
        return {"base": self.inputs.base.identity if self.inputs.base is not None else None, "models": members}

    @cached_property
    def compute_dtype(self) -> torch.dtype:
        """float64 where any input holds float64, else float32: sums are never made in half precision."""
        members = [*self.inputs.models.values(), self.inputs.reference]
        names = self.inputs.alignment.floating
        wide = any(member.info(name).dtype == "F64" for member in members for name in names)
        return torch.float64 if wide else torch.float32

    def prepare(self) -> Any:
        """Runs the method's passes if they have not run; returns their result."""
        return self._survey.state()

    @property
    def surveyed(self) -> bool:
        """Whether the method's passes have run."""
        return self._survey.done

    def remarks(self) -> list[str]:
        """What the report must say of this merge: mixed dtypes, integer tensors that differ, the method's own words."""
        found = [
            f"model {model!r} stores floating tensors in other dtypes than {self.inputs.alignment.reference}: "
            + ", ".join(f"{count} in {dtype}" for dtype, count in counts.items())
            for model, counts in self.inputs.alignment.dtypes.items()
        ]
        found += config_remarks(self.inputs)
        for name in self.inputs.alignment.integer:
            kept = self.inputs.reference.read(name)
            others = [m for m, model in self.inputs.models.items() if not torch.equal(model.read(name), kept)]
            if others:
                kept_of = self.inputs.alignment.reference
                found.append(f"integer tensor {name!r} differs in {', '.join(others)}; {kept_of}'s is kept")
        return found + self.method.remarks(self.inputs, self.prepare())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        name, start, stop = self.span(name, start, stop)
        out = torch.empty(stop - start, dtype=torch_dtype(self.infos[name].dtype))
        self.read_into(name, start, out)
        return out

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        name, start, stop = self.span(name, start, start + out.numel())
        if not self.infos[name].floating:
            self.inputs.reference.read_into(name, start, out)
            return
        done = 0
        for unit, begin, end in self._units.covering(name, start, stop):
            self._merge_into(unit, begin, end, out[done : done + end - begin])
            done += end - begin

    def read_run(self, run: Run, out: torch.Tensor) -> None:
        if len(run) > 1 and self.infos[run[0][0]].floating:
            unit, begin, _ = next(self._units.covering(*run[0]))
            if begin == 0 and unit.run == run:
                self._merge_into(unit, 0, unit.numel, out)
                return
        super().read_run(run, out)

    def step(self, name: str) -> int:
        return self._units.step(name) if self.infos[name].floating else super().step(name)

    def expect(self, run: Run) -> None:
        for member in self._members:
            member.expect(run)

    @cached_property
    def _members(self) -> list[Checkpoint]:
        base = [self.inputs.base] if self.inputs.base is not None else []
        return [*base, *self.inputs.models.values()]

    def _merge_into(self, unit: Unit, begin: int, end: int, out: torch.Tensor) -> None:
        """Entries ``begin:end`` of a unit. What is read in parts is kept for the reader of the next one."""
        if end - begin < unit.numel <= _KEPT_ENTRIES:
            if getattr(self._last, "index", None) != unit.index:
                self._last.values = self._merged(unit, out.dtype).clone()
                self._last.index = unit.index
            out.copy_(self._last.values[begin:end])
            return
        with self._room(unit):
            out.copy_(self._merged(unit, out.dtype)[begin:end])

    def _merged(self, unit: Unit, dtype: torch.dtype) -> torch.Tensor:
        state = self.prepare()
        with one_torch_thread():
            slot = self._slot(unit)
            merged = self.method.merge(slot, state).reshape(-1)
            self._refuse_non_finite(merged, slot)
            _refuse_overflow(merged, dtype, unit.run[0][0])
            return merged

    def _slot(self, unit: Unit, covers: int = 0) -> StreamSlot:
        row = self._units.row(unit.run[0][0])
        return StreamSlot(self.inputs, self.compute_dtype, unit, row, self.task, covers)

    def _room(self, unit: Unit) -> Any:
        return self._gate.room(slice_bytes(self.method, self.inputs, unit.run[0][0], unit.numel))

    def scan(
        self, visit: Callable[[Any], Any], what: str, names: Collection[str] | None = None, sample: bool = False
    ) -> list[Any]:
        """A pass over the slots; see :class:`fusion_bench.method.inputs.Scan`."""
        chosen = None if names is None else set(names)
        units = [(u, u.numel) for u in self._units.all if chosen is None or not chosen.isdisjoint(p[0] for p in u.run)]
        if sample:
            share = min(1.0, _SAMPLE_ENTRIES / max(1, sum(covers for _, covers in units)))
            rows = self._units.row
            units = [piece for unit, _ in units for piece in pieces(unit, share, rows(unit.run[0][0]))]

        def one(work: tuple[Unit, int]) -> Any:
            with self._room(work[0]):
                return visit(self._slot(*work))

        results = []
        total = sum(unit.numel for unit, _ in units) * self._entry_bytes
        with self.inputs.progress.bar(what, total, "B") as advance:
            work = ordered_map(one, units, self.inputs.threads, lambda item: self.expect(item[0].run))
            for (unit, _), result in zip(units, work, strict=True):
                results.append(result)
                advance(unit.numel * self._entry_bytes)
        return results

    @cached_property
    def _entry_bytes(self) -> float:
        """Bytes that are read for one entry of the result, on average."""
        infos = self.inputs.alignment.infos
        names = self.inputs.alignment.floating
        entries = sum(infos[name].numel for name in names)
        return sum(m.info(name).nbytes for m in self._members for name in names) / max(1, entries)

    def _refuse_non_finite(self, merged: torch.Tensor, slot: StreamSlot) -> None:
        # A finite sum proves finite entries at a third of the cost of testing each one.
        if torch.isfinite(merged.sum()) or torch.isfinite(merged).all():
            return
        inputs: dict[str, Checkpoint] = dict(self.inputs.models)
        if self.inputs.base is not None:
            inputs = {"base": self.inputs.base, **inputs}
        faults = []
        for name, model in inputs.items():
            for tensor, start, stop in slot.run:
                bad = int((~torch.isfinite(model.read(tensor, start, stop).float())).sum())
                if bad:
                    faults.append(f"model {name!r}: tensor {tensor!r} holds {bad} NaN or infinite entries")
        if not faults:
            raise NonFiniteError(
                f"tensor {slot.run[0][0]!r}: the merge overflows {merged.dtype}. Take a smaller factor."
            )
        raise NonFiniteError("\n".join(faults) + ".\nRepair the file, or leave the model out (modelpool.select).")


def _refuse_overflow(values: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    """NonFiniteError where finite `values` do not fit into the narrower `dtype`."""
    largest = torch.finfo(dtype).max
    if values.numel() and largest < torch.finfo(values.dtype).max and float(values.abs().max()) > largest:
        spelled = str(dtype).removeprefix("torch.")
        raise NonFiniteError(
            f"tensor {name!r}: values of the merge exceed the range of {spelled}. Write a wider type: dtype=float32."
        )


class _Survey:
    """What a method's passes found: run once, when first asked for."""

    def __init__(self, merge: MergedCheckpoint) -> None:
        self._merge = merge
        self._lock = threading.Lock()
        self.done = False
        self._state: Any = None

    def state(self) -> Any:
        with self._lock:
            if not self.done:
                self._state = self._merge.method.survey(self._merge.inputs, self._merge.scan)
                self.done = True
        return self._state
