"""Keeping the memory of a merge under a budget."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fusion_bench.errors import ConfigError

if TYPE_CHECKING:
    from fusion_bench.method.base import Inputs, TensorMethod

# Python, torch and its libraries once they have run, measured; and what each worker keeps beside its slices.
FIXED = 200 * 10**6
_ENTRY_BYTES = 4


class Gate:
    """Lets work begin while what is under way fits into `size` bytes; work larger than that runs alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._change = threading.Condition()

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        with self._change:
            self._change.wait_for(lambda: self._held == 0 or self._held + size <= self._size)
            self._held += size
        try:
            yield
        finally:
            with self._change:
                self._held -= size
                self._change.notify_all()


def slice_bytes(method: TensorMethod, inputs: Inputs, name: str, numel: int) -> int:
    """Memory that merging `numel` entries of tensor `name` takes."""
    wide = 2 if inputs.alignment.infos[name].dtype == "F64" else 1
    return int(method.workspace(name, inputs) * numel * _ENTRY_BYTES * wide)


def peak(method: TensorMethod, inputs: Inputs) -> int:
    """The most memory that a merge takes, estimated, with as many workers as the budget lets run."""
    from fusion_bench.method.units import Units

    units = Units(method, inputs).all
    largest = sorted((slice_bytes(method, inputs, u.run[0][0], u.numel) for u in units), reverse=True)
    together = sum(largest[: inputs.threads])
    held = method.holds(inputs)
    return FIXED + held + max(largest[0] if largest else 0, min(together, inputs.budget - FIXED - held))


def check_budget(method: TensorMethod, inputs: Inputs, known_as: str | None = None) -> None:
    """ConfigError where one slice of one tensor alone would not fit into the budget.

    `known_as`: what the user calls the method, where that is another one.
    """
    from fusion_bench.method.units import Units

    needs = [(slice_bytes(method, inputs, u.run[0][0], u.numel), u) for u in Units(method, inputs).all]
    most, unit = max(needs, key=lambda need: need[0], default=(0, None))
    most += method.holds(inputs)
    if unit is not None and FIXED + most > inputs.budget:
        name = unit.run[0][0]
        shape = list(inputs.alignment.infos[name].shape)
        raise ConfigError(
            f"memory_budget={inputs.budget / 1e6:,.0f} MB: method={known_as or method.key()} needs about "
            f"{(FIXED + most) / 1e6:,.0f} MB for tensor {name!r} {shape}. "
            f"Give memory_budget={-(-(FIXED + most) // 10**6)}MB or more."
        )
