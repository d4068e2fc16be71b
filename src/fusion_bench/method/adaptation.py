"""Coefficients of task vectors learnt from gradients, with the task vectors streamed from disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import NonFiniteError
from fusion_bench.fitting import stored_names
from fusion_bench.method.base import Granularity, Inputs, Slot
from fusion_bench.method.budget import FIXED
from fusion_bench.method.coefficients import CoefficientMerge, combined, treated
from fusion_bench.progress import Progress

if TYPE_CHECKING:
    import torch

Rows = Mapping[str, int]
"""Tensor -> the row of coefficients that it takes; several tensors may share a row."""


@dataclass(frozen=True)
class Whole(CoefficientMerge):
    """A merge whose task vectors are held for one tensor at a time where they fit, so that they are read once."""

    room: int = 0

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        return "tensor" if self.kept >= 1 and self._bytes(name, inputs) <= self.room else "element"

    def workspace(self, name: str, inputs: Inputs) -> float:
        return len(inputs.models) + 5.0

    def _bytes(self, name: str, inputs: Inputs) -> float:
        return 4.0 * inputs.alignment.infos[name].numel * self.workspace(name, inputs)


@dataclass
class Descent:
    """Adam (arXiv 1412.6980) on rows of numbers, each row for itself: rows may be stepped in any order."""

    rate: float
    values: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    beta: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def step(self, row: int, gradient: torch.Tensor, count: int) -> None:
        """One step of a row; `count` is the number of the step, from 1."""
        one, two = self.beta
        self.first[row].mul_(one).add_(gradient, alpha=1 - one)
        self.second[row].mul_(two).addcmul_(gradient, gradient, value=1 - two)
        mean = self.first[row] / (1 - one**count)
        spread = (self.second[row] / (1 - two**count)).sqrt_().add_(self.epsilon)
        self.values[row] -= self.rate * mean / spread


@dataclass
class Learner:
    """A merged model in memory beside the coefficients that it is merged with.

    `module`: the model; `places`: its parameter for each tensor; `rows`: see :data:`Rows`; `to_row`: learnt numbers of
    a row -> the coefficients; `back`: learnt numbers, gradient of the coefficients -> gradient of the learnt numbers;
    `settle`: changes learnt numbers after a step, for bounds.
    """

    inputs: Inputs
    module: torch.nn.Module
    places: Mapping[str, torch.nn.Parameter]
    rows: Rows
    descent: Descent
    merging: CoefficientMerge
    to_row: Callable[[torch.Tensor], torch.Tensor]
    back: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    settle: Callable[[torch.Tensor], torch.Tensor]
    count: int = 0
    _scan: Any = field(init=False)
    _shared: bool = field(init=False)

    def __post_init__(self) -> None:
        from fusion_bench.method.engine import MergedCheckpoint

        room = (self.inputs.budget - FIXED) // max(1, min(2, self.inputs.threads))
        own = Whole(others=self.merging.others, kept=self.merging.kept, trim=self.merging.trim, room=room)
        quiet = replace(self.inputs, progress=Progress(enabled=False))
        self._scan = MergedCheckpoint(own, quiet).scan
        self._shared = len(set(self.rows.values())) < len(self.rows)
        alone = {name for name in self.rows if own.granularity(name, quiet) == "tensor"}
        self._at_once = set() if self._shared else alone
        self._twice = [name for name in self.rows if name not in self._at_once]

    def step(self) -> None:
        """Takes the gradients that lie in the parameters, moves the coefficients, merges anew; clears the gradients.

        A tensor whose coefficients are its own is read once; where several tensors share coefficients, or a tensor is
        too large to hold for every model, task vectors are read a second time.
        """
        self.count += 1
        if self._at_once:
            self._scan(self._learn_and_merge, "", names=self._at_once)
        if self._twice:
            self._apart()

    def _learn_and_merge(self, slot: Slot) -> None:
        parameter = self.places[slot.name]
        if parameter.grad is None:
            return
        deltas = [delta.reshape(-1).clone() for delta in treated(slot, self.merging.trim)]
        self._move(self.rows[slot.name], self._products(slot, deltas))
        self._write(slot, combined(slot.base.reshape(-1), deltas, self.coefficients(slot.name)))

    def _apart(self) -> None:
        import torch

        sums = torch.zeros_like(self.descent.values)
        reached = {name for name in self._twice if self.places[name].grad is not None}

        def products(slot: Slot) -> tuple[str, torch.Tensor]:
            return slot.name, self._products(slot, (d.reshape(-1) for d in treated(slot, self.merging.trim)))

        for name, part in self._scan(products, "", names=reached):
            sums[self.rows[name]] += part
        for row in sorted({self.rows[name] for name in reached}):
            self._move(row, sums[row])

        def merge(slot: Slot) -> None:
            deltas = (delta.reshape(-1) for delta in treated(slot, self.merging.trim))
            self._write(slot, combined(slot.base.reshape(-1), deltas, self.coefficients(slot.name)))

        moved = {self.rows[name] for name in reached}
        self._scan(merge, "", names={name for name in self._twice if self.rows[name] in moved})

    def state(self) -> dict[str, Any]:
        """What a later process needs to go on, ready for JSON; numbers are kept to the last bit."""
        held = self.descent
        return {
            "values": held.values.tolist(), "first": held.first.tolist(), "second": held.second.tolist(),
            "count": self.count,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave, and merges the model with it."""
        import torch

        for name in ("values", "first", "second"):
            getattr(self.descent, name).copy_(torch.tensor(state[name], dtype=torch.float64))
        self.count = int(state["count"])

        def merge(slot: Slot) -> None:
            deltas = (delta.reshape(-1) for delta in treated(slot, self.merging.trim))
            self._write(slot, combined(slot.base.reshape(-1), deltas, self.coefficients(slot.name)))

        self._scan(merge, "", names=set(self.rows))

    def coefficients(self, name: str) -> list[float]:
        """The coefficients of a tensor, in pool order."""
        found: list[float] = self.to_row(self.descent.values[self.rows[name]]).tolist()
        return found

    def _products(self, slot: Slot, deltas: Any) -> torch.Tensor:
        """The gradient of each coefficient: the inner product of the parameter's gradient with the task vector."""
        import torch

        from fusion_bench.ops.products import inner

        held = self.places[slot.name].grad
        assert held is not None
        part = held.detach().view(-1)[slot.start : slot.stop]
        found = []
        for delta in deltas:
            part = part.to(delta.device, delta.dtype)
            found.append(inner(part, delta))
        return torch.tensor(found, dtype=torch.float64)

    def _move(self, row: int, gradient: torch.Tensor) -> None:
        if not gradient.isfinite().all():
            raise NonFiniteError(
                f"adapting, step {self.count}: the gradient of the coefficients is NaN or infinite. Take a smaller "
                "method.lr, or look for extreme values in the data."
            )
        self.descent.step(row, self.back(self.descent.values[row], gradient), self.count)
        self.settle(self.descent.values[row])

    def _write(self, slot: Slot, merged: torch.Tensor) -> None:
        parameter = self.places[slot.name]
        parameter.detach().view(-1)[slot.start : slot.stop].copy_(merged)
        if parameter.grad is not None:
            # The gradient of a contiguous parameter is laid out like it.
            parameter.grad.view(-1)[slot.start : slot.stop].zero_()


def learner_of(
    merging: CoefficientMerge,
    inputs: Inputs,
    load: Callable[[Any], torch.nn.Module],
    tie: str,
    rate: float,
    normalize: str,
    clamp: bool,
) -> Learner:
    """A learner that begins with the coefficients of `merging`; tensors that share a row begin with the first's."""
    import torch

    from fusion_bench.method.engine import MergedCheckpoint

    merged = MergedCheckpoint(merging, inputs)
    module = load(merged)
    floating = set(inputs.alignment.floating)
    places: dict[str, torch.nn.Parameter] = {}
    names_of = stored_names(module, merged)
    for name, parameter in module.named_parameters():
        stored = names_of[name]
        if stored in floating:
            # Slices are written through flat views.
            parameter.data = parameter.data.contiguous()
            parameter.requires_grad_(True)
            places[stored] = parameter
    names = [name for name in inputs.alignment.floating if name in places]
    rows, labels = rows_of(names, tie, inputs.structure.blocks)
    start = torch.zeros(len(labels), len(inputs.models), dtype=torch.float64)
    for name in reversed(names):
        start[rows[name]] = torch.tensor(merging.row(name), dtype=torch.float64)
    softmax = normalize == "softmax"
    values = start.clamp(min=1e-8).log() if softmax else start
    descent = Descent(rate, values, torch.zeros_like(values), torch.zeros_like(values))

    def back(learnt: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        share = learnt.softmax(0)
        return share * (gradient - (share * gradient).sum())

    return Learner(
        inputs, module, places, rows, descent, merging,
        to_row=(lambda learnt: learnt.softmax(0)) if softmax else (lambda learnt: learnt),
        back=back if softmax else (lambda learnt, gradient: gradient),
        settle=(lambda learnt: learnt.clamp_(0, 1)) if clamp and not softmax else (lambda learnt: learnt),
    )  # fmt: skip


def rows_of(names: Sequence[str], tie: str, blocks: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """The row of every tensor and a label for each row: one a tensor, one a block of layers, or one for the model."""
    if tie == "none":
        return {name: place for place, name in enumerate(names)}, list(names)
    if tie == "model":
        return dict.fromkeys(names, 0), ["all tensors"]
    labels: dict[str, int] = {}
    found = {}
    for name in names:
        label = _block(name) if name in blocks else name
        found[name] = labels.setdefault(label, len(labels))
    return found, list(labels)


def _block(name: str) -> str:
    parts = name.split(".")
    at = next(place for place, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: at + 1])
