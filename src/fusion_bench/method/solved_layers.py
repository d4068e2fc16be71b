"""What merges of linear layers by a system of equations share: which tensors are solved for, in which shape."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot, TensorMethod

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.statistics import Statistics


class Weights:
    """The weights of one layer as in x out, read anew at each turn; each is valid until the next is asked for.

    A vector of n entries is a layer of n inputs and one output.
    """

    def __init__(self, slot: Slot, turned: bool, vector: bool) -> None:
        self._slot, self._turned, self._vector = slot, turned, vector
        self.name, self.models = slot.name, slot.model_names

    def __len__(self) -> int:
        return len(self.models)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self._upright(weight) for weight in self._slot.models)

    @property
    def base(self) -> torch.Tensor:
        """The base's weight. Must not be modified."""
        return self._upright(self._slot.base)

    def of(self, checkpoint: Checkpoint) -> torch.Tensor:
        """The weight of another checkpoint."""
        return self._upright(checkpoint[self.name])

    def stored(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight in x out as the slot has it."""
        if self._vector:
            return weight.reshape(self._slot.shape)
        return weight if self._turned else weight.T

    def _upright(self, weight: torch.Tensor) -> torch.Tensor:
        if self._vector:
            return weight.reshape(-1, 1)
        return weight if self._turned else weight.T


@dataclass
class Found:
    """Which tensors are solved for, which are stored in x out, which are vectors, what solving each was like."""

    names: frozenset[str]
    turned: frozenset[str]
    vectors: frozenset[str]
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SolvedLayers(TensorMethod):
    """Tensors for which every model has a statistic are solved for, the others are averaged.

    `statistics`: by model; None stands for those of every linear layer, in forecasts. `log`: is given what solving
    each tensor was like, by name, once it was merged.
    """

    statistics: Any = hyper(None, "statistics of each model, by name")
    outputs: Any = hyper(None, "further statistics of each model, on the side of the outputs; null: none")
    log: Any = hyper(None, "where notes on each tensor go")

    @abstractmethod
    def solve(self, weights: Weights, statistics: Mapping[str, Statistics]) -> tuple[torch.Tensor, Any]:
        """The merged weight, in x out, and a plain note on how it was found, or None."""

    @abstractmethod
    def told(self, state: Found) -> list[str]:
        """What a reader must know of how the tensors were solved for."""

    @abstractmethod
    def buffers(self, width: int, outputs: int, models: int) -> float:
        """Entries that `solve` holds at most beside one weight; those of float64 count twice."""

    @abstractmethod
    def work(self, width: int, outputs: int, models: int) -> float:
        """Floating-point operations of `solve`, at most."""

    def holds(self, inputs: Inputs) -> int:
        return sum(found.held for each in (self.statistics, self.outputs) for found in (each or {}).values())

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        return "tensor" if self._solves(name, inputs) else "element"

    def workspace(self, name: str, inputs: Inputs) -> float:
        if not self._solves(name, inputs):
            return 9.0
        width, outputs = _widths(name, inputs)
        # A weight as stored, as computed, and the result.
        return 4 + self.buffers(width, outputs, len(inputs.models)) / (width * outputs)

    def operations(self, name: str, inputs: Inputs) -> float:
        numel = inputs.alignment.infos[name].numel
        mean = 1.5 * numel * (len(inputs.models) + 1)
        if not self._solves(name, inputs):
            return mean
        width, outputs = _widths(name, inputs)
        return mean + self.work(width, outputs, len(inputs.models))

    def survey(self, inputs: Inputs, scan: Scan) -> Found:
        names = [name for name in inputs.alignment.floating if self._solves(name, inputs)]
        vectors = frozenset(name for name in names if self._width(name) != _widths(name, inputs)[0])
        return Found(frozenset(names), inputs.structure.transposed, vectors)

    def merge(self, slot: Slot, state: Found) -> torch.Tensor:
        from fusion_bench.ops import linear

        if slot.name not in state.names or self.statistics is None:
            return linear.mean(slot.models, len(slot.model_names))
        weights = Weights(slot, slot.name in state.turned, slot.name in state.vectors)
        merged, note = self.solve(weights, self.statistics)
        if note is not None:
            state.notes[slot.name] = note
            if self.log is not None:
                self.log[slot.name] = note
        return weights.stored(merged)

    def remarks(self, inputs: Inputs, state: Found) -> list[str]:
        count = len(inputs.alignment.floating)
        others = ", the others averaged" if len(state.names) < count else ""
        return [f"{len(state.names)} of {count} tensors are solved for{others}", *self.told(state)]

    def _solves(self, name: str, inputs: Inputs) -> bool:
        info = inputs.alignment.infos[name]
        if self.statistics is None:
            return name in inputs.structure.linear and info.numel > 0
        if not info.numel or any(name not in found for found in self.statistics.values()):
            return False
        return self._width(name) in (_widths(name, inputs)[0], info.numel)

    def _width(self, name: str) -> int:
        """The side of a tensor's statistic."""
        found = next(iter(self.statistics.values()))
        side: int = found.tensors.info(found.index[name]).shape[0]
        return side


def _widths(name: str, inputs: Inputs) -> tuple[int, int]:
    """How many inputs and outputs a layer with this weight has; a vector of n entries has n and one."""
    shape = inputs.alignment.infos[name].shape
    if len(shape) != 2:
        return inputs.alignment.infos[name].numel, 1
    return (shape[0], shape[1]) if name in inputs.structure.transposed else (shape[1], shape[0])
