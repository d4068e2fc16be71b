"""Streaming execution of a TensorMethod: the merge as a lazy checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch

from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
from fusion_bench.checkpoint.dtypes import torch_dtype
from fusion_bench.checkpoint.stream import BLOCK
from fusion_bench.errors import NonFiniteError
from fusion_bench.method.base import Inputs, TensorMethod
from fusion_bench.method.configs import config_remarks
from fusion_bench.ops.scratch import SCRATCH
from fusion_bench.parallel import one_torch_thread, ordered_map

# A sampled pass reads this many pieces of each slice: several short ones, since neighbouring entries resemble another.
_PIECES = 4
_SAMPLE_ENTRIES = 1 << 18


class StreamSlot:
    """A slice that is read when asked for; one worker uses it and drops it."""

    def __init__(self, run: MergedCheckpoint, index: int, name: str, start: int, stop: int) -> None:
        info = run.inputs.alignment.infos[name]
        self.name, self.index, self.start, self.stop = name, index, start, stop
        self.covers = stop - start
        self.shape = info.shape
        self.model_names = tuple(run.inputs.models)
        self._run = run
        self._whole = run.method.granularity == "tensor"
        self._dtype = run.compute_dtype

    @cached_property
    def base(self) -> torch.Tensor:
        reference = self._run.inputs.base
        assert reference is not None, "the method does not declare needs_base"
        return self._shaped(self._read(reference, "base"))

    @property
    def models(self) -> Iterator[torch.Tensor]:
        for name, model in self._run.inputs.models.items():
            yield self._shaped(self._model(name, model))

    @property
    def deltas(self) -> Iterator[torch.Tensor]:
        base = self.base
        for model in self.models:
            yield torch.sub(model, base, out=model)

    def _shaped(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.reshape(self.shape) if self._whole else flat

    def _model(self, name: str, model: Checkpoint) -> torch.Tensor:
        if model.base is not None and model.base is self._run.inputs.base:
            # An adapter over the pool's base: the base's slice is at hand, so only the delta is worked out.
            changed = model.apply_delta(self.name, self.start, self.base.reshape(-1))
            return changed.to(self._dtype)
        return self._read(model, "model")

    def _read(self, source: Checkpoint, role: str) -> torch.Tensor:
        stored = torch_dtype(source.info(self.name).dtype)
        numel = self.stop - self.start
        raw = SCRATCH.take(role, numel, stored)
        source.read_into(self.name, self.start, raw)
        if stored == self._dtype:
            return raw
        wide = SCRATCH.take(role, numel, self._dtype)
        return wide.copy_(raw)


class MergedCheckpoint(Checkpoint):
    """What a TensorMethod makes of its inputs, computed slice by slice when read.

    Whole-model passes (`survey`) run once, at the first read. Values depend on the inputs, the method and the seed
    alone: not on the order, the number or the size of the reads, nor on the number of threads.
    """

    def __init__(self, method: TensorMethod, inputs: Inputs) -> None:
        self.method = method
        self.inputs = inputs
        self._lock = threading.Lock()
        self._state: Any = None
        self._surveyed = False

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
        with self._lock:
            if not self._surveyed:
                self._state = self.method.survey(self.inputs, self._scan)
                self._surveyed = True
        return self._state

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
        state = self.prepare()
        with one_torch_thread():
            for slot in self._slots_of(name, start, stop):
                merged = self.method.merge(slot, state).reshape(-1)
                self._refuse_non_finite(merged, slot)
                begin, end = max(slot.start, start), min(slot.stop, stop)
                piece = merged[begin - slot.start : end - slot.start]
                _refuse_overflow(piece, out.dtype, name)
                out[begin - start : end - start].copy_(piece)

    @cached_property
    def _first_index(self) -> Mapping[str, int]:
        """The index of each floating tensor's first slot, over the whole model."""
        found: dict[str, int] = {}
        index = 0
        for name in self.inputs.alignment.floating:
            found[name] = index
            numel = self.inputs.alignment.infos[name].numel
            index += 1 if self.method.granularity == "tensor" else max(1, -(-numel // BLOCK))
        return found

    def _slots_of(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[StreamSlot]:
        """The slots that cover entries ``start:stop`` of a tensor."""
        numel = self.inputs.alignment.infos[name].numel
        index = self._first_index[name]
        if self.method.granularity == "tensor" or numel == 0:
            yield StreamSlot(self, index, name, 0, numel)
            return
        for begin in range(start // BLOCK * BLOCK, numel if stop is None else stop, BLOCK):
            yield StreamSlot(self, index + begin // BLOCK, name, begin, min(begin + BLOCK, numel))

    def _scan(
        self, visit: Callable[[Any], Any], what: str, names: Collection[str] | None = None, sample: bool = False
    ) -> list[Any]:
        chosen = [name for name in self.inputs.alignment.floating if names is None or name in names]
        slots = [slot for name in chosen for slot in self._slots_of(name)]
        if sample:
            share = min(1.0, _SAMPLE_ENTRIES / max(1, sum(slot.covers for slot in slots)))
            slots = [piece for slot in slots for piece in self._pieces(slot, share)]
        entries = sum(slot.stop - slot.start for slot in slots)
        results = []
        with self.inputs.progress.bar(what, entries / 1e6, "M entries") as advance:
            for slot, result in zip(slots, ordered_map(visit, slots, self.inputs.threads), strict=True):
                results.append(result)
                advance((slot.stop - slot.start) / 1e6)
        return results

    def _pieces(self, slot: StreamSlot, share: float) -> Iterator[StreamSlot]:
        part = max(1, slot.covers // _PIECES)
        length = max(256, int(part * share))
        if length * _PIECES >= slot.covers:
            yield slot
            return
        for number in range(_PIECES):
            # At different depths, so that a regular layout is not sampled in one column.
            start = slot.start + number * part + (slot.index * 7919 + number * 104729) % (part - length + 1)
            piece = StreamSlot(self, slot.index, slot.name, start, start + length)
            piece.covers = part
            yield piece

    def _refuse_non_finite(self, merged: torch.Tensor, slot: StreamSlot) -> None:
        # A finite sum proves finite entries at a third of the cost of testing each one.
        if torch.isfinite(merged.sum()) or torch.isfinite(merged).all():
            return
        inputs: dict[str, Checkpoint] = dict(self.inputs.models)
        if self.inputs.base is not None:
            inputs = {"base": self.inputs.base, **inputs}
        faults = []
        for name, model in inputs.items():
            piece = model.read(slot.name, slot.start, slot.stop)
            bad = int((~torch.isfinite(piece.float())).sum())
            if bad:
                faults.append(f"model {name!r}: tensor {slot.name!r} holds {bad} NaN or infinite entries")
        if not faults:
            raise NonFiniteError(f"tensor {slot.name!r}: the merge overflows {merged.dtype}. Take a smaller factor.")
        raise NonFiniteError("\n".join(faults) + ".\nRepair the file, or leave the model out (modelpool.select).")


def _refuse_overflow(values: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    """NonFiniteError where finite `values` do not fit into the narrower `dtype`."""
    largest = torch.finfo(dtype).max
    if values.numel() and largest < torch.finfo(values.dtype).max and float(values.abs().max()) > largest:
        spelled = str(dtype).removeprefix("torch.")
        raise NonFiniteError(
            f"tensor {name!r}: values of the merge exceed the range of {spelled}. Write a wider type: dtype=float32."
        )
