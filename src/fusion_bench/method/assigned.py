"""Methods that differ by tensor: each tensor is merged by the one that is chosen for it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot, TensorMethod

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.align import Alignment
    from fusion_bench.checkpoint.structure import Structure

Group = tuple[TensorMethod, list[str]]
"""A method, and the tensors that it merges as if they were the whole model."""


@dataclass(frozen=True)
class ByTensor(TensorMethod):
    """A method that hands each tensor to another one; those that fall to the same are surveyed together."""

    @abstractmethod
    def at(self, name: str, structure: Structure) -> TensorMethod:
        """The method for tensor `name`: the same object for the tensors that are merged together."""

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        return self.at(name, inputs.structure).granularity(name, inputs)

    def workspace(self, name: str, inputs: Inputs) -> float:
        return self.at(name, inputs.structure).workspace(name, inputs)

    def holds(self, inputs: Inputs) -> int:
        return max((m.holds(inputs.only(names)) for m, names in self._groups(inputs)), default=0)

    def passes(self, inputs: Inputs) -> int:
        return max((m.passes(inputs) for m, _ in self._groups(inputs)), default=1)

    def survey(self, inputs: Inputs, scan: Scan) -> dict[str, tuple[TensorMethod, Any]]:
        found: dict[str, tuple[TensorMethod, Any]] = {}
        for method, names in self._groups(inputs):
            state = method.survey(inputs.only(names), _restricted(scan, names))
            found.update(dict.fromkeys(names, (method, state)))
        return found

    def merge(self, slot: Slot, state: dict[str, tuple[TensorMethod, Any]]) -> torch.Tensor:
        # A slot of several small tensors has no name of its own; they all fall to one method then.
        method, inner_state = state[slot.run[0][0]]
        return method.merge(slot, inner_state)

    def remarks(self, inputs: Inputs, state: dict[str, tuple[TensorMethod, Any]]) -> list[str]:
        found: dict[str, None] = {}
        for method, names in self._groups(inputs):
            found.update(dict.fromkeys(method.remarks(inputs.only(names), state[names[0]][1])))
        return list(found)

    def _groups(self, inputs: Inputs) -> list[Group]:
        """The methods in use, each with the tensors that it merges, in the order of names."""
        found: dict[int, Group] = {}
        for name in inputs.alignment.floating:
            method = self.at(name, inputs.structure)
            found.setdefault(id(method), (method, []))[1].append(name)
        return list(found.values())


@dataclass(frozen=True)
class Assigned(ByTensor):
    """A method for every tensor by its name; equal methods merge their tensors together."""

    methods: Mapping[str, TensorMethod] = hyper({}, "name of a tensor -> its method")

    def __post_init__(self) -> None:
        super().__post_init__()
        # One object for equal methods. They are compared by what they are made of: mappings in them have no hash.
        kept: dict[str, TensorMethod] = {}
        object.__setattr__(self, "methods", {n: kept.setdefault(_key(m), m) for n, m in self.methods.items()})
        object.__setattr__(self, "_distinct", tuple(kept.values()))
        object.__setattr__(self, "needs_base", any(method.needs_base for method in kept.values()))

    @property
    def distinct(self) -> tuple[TensorMethod, ...]:
        """The methods in use, each once."""
        found: tuple[TensorMethod, ...] = self._distinct  # type: ignore[attr-defined]
        return found

    @property
    def pointwise(self) -> bool:
        return len(self.distinct) == 1 and self.distinct[0].pointwise

    def at(self, name: str, structure: Structure) -> TensorMethod:
        return self.methods[name]

    def check(self, models: Sequence[str]) -> None:
        for method in self.distinct:
            method.check(models)

    def check_tensors(self, alignment: Alignment) -> None:
        for method in self.distinct:
            method.check_tensors(alignment)


def _key(method: TensorMethod) -> str:
    return repr(method)


def _restricted(scan: Scan, own: Collection[str]) -> Scan:
    def inside(
        visit: Callable[[Slot], Any], what: str, names: Collection[str] | None = None, sample: bool = False
    ) -> list[Any]:
        return scan(visit, what, own if names is None else set(names) & set(own), sample)

    return inside
