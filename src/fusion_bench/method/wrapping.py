"""Methods around another method: the task vectors are edited first, then the inner method merges them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot, TensorMethod, adopt

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.align import Alignment

_ORDER: Sequence[Granularity] = ("element", "row", "tensor")

Edit = Callable[[Slot, int, "torch.Tensor"], "torch.Tensor"]
"""The edited delta of the model at a position; may overwrite the one it is given."""


class EditedSlot:
    """A slot whose task vectors are edited as they are read."""

    def __init__(self, slot: Slot, edit: Edit) -> None:
        self._slot, self._edit = slot, edit
        self.name, self.index, self.run, self.shape = slot.name, slot.index, slot.run, slot.shape
        self.start, self.stop, self.covers = slot.start, slot.stop, slot.covers
        self.model_names, self.task, self.seed = slot.model_names, slot.task, slot.seed

    @property
    def base(self) -> torch.Tensor:
        return self._slot.base

    @property
    def deltas(self) -> Iterator[torch.Tensor]:
        for index, delta in enumerate(self._slot.deltas):
            yield self._edit(self._slot, index, delta)

    @property
    def models(self) -> Iterator[torch.Tensor]:
        for delta in self.deltas:
            yield delta.add_(self.base)


@dataclass(frozen=True)
class DeltaWrapper(TensorMethod):
    """A method that edits every task vector and leaves the merging to `inner`."""

    needs_base = True

    inner: TensorMethod = hyper("task_arithmetic", "the method that merges what was edited")

    def __post_init__(self) -> None:
        super().__post_init__()
        adopt(self, self.inner, "per_task", "model_counts")

    @abstractmethod
    def edit(self, slot: Slot, model: int, delta: torch.Tensor, state: Any) -> torch.Tensor:
        """The edited delta, given what `prepare` found; may overwrite `delta`."""

    def prepare(self, inputs: Inputs, scan: Scan) -> Any:
        """Whole-model facts that `edit` needs."""
        return None

    def cut(self, name: str, inputs: Inputs) -> Granularity:
        """How far `edit` lets tensor `name` be cut."""
        return "element"

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        return coarser(self.cut(name, inputs), self.inner.granularity(name, inputs))

    def workspace(self, name: str, inputs: Inputs) -> float:
        return self.inner.workspace(name, inputs) + 4

    def holds(self, inputs: Inputs) -> int:
        return self.inner.holds(inputs)

    def passes(self, inputs: Inputs) -> int:
        return self.inner.passes(inputs)

    def check(self, models: Sequence[str]) -> None:
        self.inner.check(models)

    def check_tensors(self, alignment: Alignment) -> None:
        self.inner.check_tensors(alignment)

    def survey(self, inputs: Inputs, scan: Scan) -> tuple[Any, Any]:
        own = self.prepare(inputs, scan)

        def edited(
            visit: Callable[[Slot], Any], what: str, names: Collection[str] | None = None, sample: bool = False
        ) -> list[Any]:
            return scan(lambda slot: visit(self._edited(slot, own)), what, names, sample)

        return own, self.inner.survey(inputs, edited)

    def merge(self, slot: Slot, state: tuple[Any, Any]) -> torch.Tensor:
        return self.inner.merge(self._edited(slot, state[0]), state[1])

    def remarks(self, inputs: Inputs, state: tuple[Any, Any]) -> list[str]:
        return self.inner.remarks(inputs, state[1])

    def _edited(self, slot: Slot, own: Any) -> EditedSlot:
        return EditedSlot(slot, lambda inside, model, delta: self.edit(inside, model, delta, own))


def coarser(one: Granularity, other: Granularity) -> Granularity:
    """The granularity that serves both."""
    return max(one, other, key=_ORDER.index)
