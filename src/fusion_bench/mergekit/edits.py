"""Edits of task vectors that differ by model, as the parameters of mergekit may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot, TensorMethod
from fusion_bench.method.wrapping import DeltaWrapper, coarser

if TYPE_CHECKING:
    import torch

    from fusion_bench.method.dropping import Ratios
    from fusion_bench.method.trimming import Trim


@dataclass(frozen=True)
class Weighted(DeltaWrapper):
    r"""$\tau_i \leftarrow w_i \tau_i$."""

    factors: tuple[float, ...] = hyper((), "one factor a model, in pool order")

    @property
    def pointwise(self) -> bool:
        return self.inner.pointwise

    def edit(self, slot: Slot, model: int, delta: torch.Tensor, state: Any) -> torch.Tensor:
        # A model without weight is left out, whatever it holds.
        return delta.mul_(self.factors[model]) if self.factors[model] else delta.zero_()


@dataclass(frozen=True)
class Trimmed(DeltaWrapper):
    r"""Of $d$ entries of a tensor the $\max(1, \lfloor k_i d \rfloor)$ of largest magnitude; none where $k_i = 0$."""

    densities: tuple[float, ...] = hyper((), "kept share of each model, in pool order")

    def passes(self, inputs: Inputs) -> int:
        return self.inner.passes(inputs) + 1

    def prepare(self, inputs: Inputs, scan: Scan) -> Trim:
        from fusion_bench.method.trimming import Trim, magnitudes, tensor_cuts

        sizes = {name: inputs.alignment.infos[name].numel for name in inputs.alignment.floating}
        keeps = {
            (model, name): _kept(density, entries)
            for name, entries in sizes.items()
            for model, density in enumerate(self.densities)
        }
        return Trim(selection=tensor_cuts(inputs, scan, magnitudes, keeps), per_tensor=True)

    def edit(self, slot: Slot, model: int, delta: torch.Tensor, state: Trim) -> torch.Tensor:
        return state.apply(slot, model, delta)


@dataclass(frozen=True)
class Apart(DeltaWrapper):
    """The task vector of each model edited by a wrapper of its own."""

    edits: tuple[TensorMethod, ...] = hyper((), "one wrapper a model, in pool order; their own `inner` is not used")

    @property
    def _wrappers(self) -> tuple[DeltaWrapper, ...]:
        return tuple(edit for edit in self.edits if isinstance(edit, DeltaWrapper))

    def cut(self, name: str, inputs: Inputs) -> Granularity:
        found: Granularity = "element"
        for wrapper in self._wrappers:
            found = coarser(found, wrapper.cut(name, inputs))
        return found

    def passes(self, inputs: Inputs) -> int:
        return self.inner.passes(inputs) + sum(w.passes(inputs) - w.inner.passes(inputs) for w in self._distinct())

    def prepare(self, inputs: Inputs, scan: Scan) -> list[Any]:
        distinct = self._distinct()
        states = [wrapper.prepare(inputs, scan) for wrapper in distinct]
        return [states[distinct.index(wrapper)] for wrapper in self._wrappers]

    def edit(self, slot: Slot, model: int, delta: torch.Tensor, state: list[Any]) -> torch.Tensor:
        return self._wrappers[model].edit(slot, model, delta, state[model])

    def _distinct(self) -> list[DeltaWrapper]:
        found: list[DeltaWrapper] = []
        for wrapper in self._wrappers:
            if wrapper not in found:
                found.append(wrapper)
        return found


@dataclass(frozen=True)
class Rescaled(DeltaWrapper):
    r"""$\tau_i \leftarrow \frac{\|\tau_i\|_1}{\|e(\tau_i)\|_1} e(\tau_i)$ for each tensor, $e$ the edit of `around`."""

    around: TensorMethod = hyper("dare", "the wrapper that edits; its own `inner` is not used")

    @property
    def _edits(self) -> DeltaWrapper:
        assert isinstance(self.around, DeltaWrapper)
        return self.around

    def cut(self, name: str, inputs: Inputs) -> Granularity:
        return self._edits.cut(name, inputs)

    def passes(self, inputs: Inputs) -> int:
        return self._edits.passes(inputs) + 1

    def prepare(self, inputs: Inputs, scan: Scan) -> tuple[Any, Ratios]:
        from fusion_bench.method.dropping import l1_ratios

        own = self._edits.prepare(inputs, scan)
        return own, l1_ratios(scan, lambda slot, model, delta: self._edits.edit(slot, model, delta, own))

    def edit(self, slot: Slot, model: int, delta: torch.Tensor, state: tuple[Any, Ratios]) -> torch.Tensor:
        own, ratios = state
        return self._edits.edit(slot, model, delta, own).mul_(ratios[model, slot.name])


def _kept(density: float, entries: int) -> int | None:
    """How many of the entries are kept; None for all."""
    if density <= 0:
        return 0
    kept = max(1, int(density * entries))
    return None if kept >= entries else kept
