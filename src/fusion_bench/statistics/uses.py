"""Which inputs the layers of a live module are given, found by watching it run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fusion_bench.statistics.live import Layer

if TYPE_CHECKING:
    import torch

    from fusion_bench.fitting import Batch, TaskData

See = Callable[[Layer, "torch.Tensor", int], None]
"""Told of a layer that is about to run, its input, and the number of that input among the forward's inputs."""


@dataclass(frozen=True)
class Uses:
    """The calls of one forward in order: parameter and number of the input tensor, by first appearance."""

    calls: tuple[tuple[str, int], ...]

    @property
    def order(self) -> list[str]:
        """The parameters in the order in which they first run."""
        return list(dict.fromkeys(name for name, _ in self.calls))

    @cached_property
    def signatures(self) -> dict[str, tuple[int, ...]]:
        """Parameter -> the inputs that it is given, in order."""
        found: dict[str, tuple[int, ...]] = {}
        for name, number in self.calls:
            found[name] = (*found.get(name, ()), number)
        return found

    @cached_property
    def leaders(self) -> dict[str, str]:
        """Parameter -> the first parameter that is given the same inputs."""
        first: dict[tuple[int, ...], str] = {}
        return {name: first.setdefault(numbers, name) for name, numbers in self.signatures.items()}

    def only(self, names: Collection[str]) -> Uses:
        """The calls of some parameters, with their inputs numbered anew."""
        numbers: dict[int, int] = {}
        kept = [(name, number) for name, number in self.calls if name in names]
        return Uses(tuple((name, numbers.setdefault(number, len(numbers))) for name, number in kept))


class Watch:
    """Numbers the inputs of watched layers within a forward by the identity of the tensor."""

    def __init__(self, see: See | None) -> None:
        self._see = see
        self.start()

    def start(self) -> None:
        """Tells that a new forward begins."""
        self.calls: list[tuple[str, int]] = []
        # Weak references: a tensor that is gone cannot be taken for a later one at its place in memory.
        self._seen: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._count = 0

    def ran(self, layer: Layer, given: torch.Tensor) -> None:
        """Tells that a layer is about to run."""
        known = self._seen.get(id(given))
        if known is None or known[0]() is not given:
            known = weakref.ref(given), self._count
            self._seen[id(given)] = known
            self._count += 1
        self.calls.append((layer.name, known[1]))
        if self._see is not None:
            self._see(layer, given, known[1])

    @property
    def uses(self) -> Uses:
        """What ran since `start`."""
        return Uses(tuple(self.calls))


@contextmanager
def watched(layers: Sequence[Layer], see: See | None = None) -> Iterator[Watch]:
    """Watches the layers for as long as the context lasts."""
    watch = Watch(see)

    def hook(layer: Layer) -> Any:
        def before(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensor = given[0] if given else named.get("input", named.get("x"))
            if tensor is not None:
                watch.ran(layer, tensor)

        return before

    handles = [layer.module.register_forward_pre_hook(hook(layer), with_kwargs=True) for layer in layers]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def uses_of(module: torch.nn.Module, layers: Sequence[Layer], data: TaskData) -> Uses:
    """How the layers are used when the module runs over the first example."""
    import torch

    with watched(layers) as watch, torch.no_grad():
        data.forward(module, data.collate([0]))
    return watch.uses


def real_rows(values: torch.Tensor, batch: Batch, stream: str) -> tuple[torch.Tensor, bool]:
    """`values` (..., width) as rows x width without those that stand for padding in a stream of tokens.

    False where the stream is padded but `values` does not go by its tokens: then every row is taken.
    """
    rows = values.reshape(-1, values.shape[-1])
    mask = batch.masks.get(stream) if stream else None
    if mask is None:
        return rows, True
    if values.shape[:-1] == mask.shape or (values.dim() == 2 and len(rows) == mask.numel()):
        return rows[mask.reshape(-1).bool()], True
    # One vector an example, as of a pooled state, has no padding.
    return rows, len(rows) == len(batch)
