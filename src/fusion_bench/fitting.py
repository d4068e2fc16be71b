"""What an algorithm that looks at data is given, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.method.base import ModelFusionAlgorithm
    from fusion_bench.progress import Progress

Use = Literal["train", "adapt", "select"]
"""What data serve: statistics of what a model was trained on; adaptation without labels; choice by held-out scores."""

Protocol = Literal["disjoint", "paper"]
"""Whether adaptation and choice keep away from the split that is reported, or use it as the papers do."""


@dataclass(frozen=True)
class Batch:
    """Examples as a module takes them.

    `inputs`: tensors by name, examples along their first dimension; `labels`: class indices, None where there are
    none; `ids`: the data set's own index of each example; `masks`: for padded sequences rows x tokens, True where a
    token is real, by the stream of tokens (``encoder``, ``decoder``); a stream without a mask has no padding.
    """

    inputs: Mapping[str, torch.Tensor]
    ids: tuple[Any, ...]
    labels: torch.Tensor | None = None
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


class TaskData(ABC):
    """The examples of one task in a fixed order, beside the ways in which a live module is put to them.

    The order is that of a seeded shuffle, so any prefix is a sample. Logits and log-probabilities are differentiable
    with respect to the module's parameters. `facts`: what a reader must know of the data, ready for JSON: where they
    come from, which split, how many there are, whether that split is the reported one; `digest`: of everything that
    decides the batches, for caches; `labelled`: whether `forward` shows the module the right answers; `label_outputs`:
    the columns of `logits` that stand for labels, None for all of them.
    """

    name: str
    facts: Mapping[str, Any]
    digest: str
    labelled: bool = False
    label_outputs: Sequence[int] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """How many examples there are."""

    @abstractmethod
    def collate(self, places: Sequence[int]) -> Batch:
        """The examples at some places of the order, on the device of the run."""

    @abstractmethod
    def forward(self, module: Any, batch: Batch) -> None:
        """Runs the module over a batch in the way its training did, for the sake of what its layers are given."""

    @abstractmethod
    def logits(self, module: Any, batch: Batch) -> torch.Tensor:
        """The outputs that decide the answer: rows x outputs. Language models: the first token of the answer."""

    @abstractmethod
    def log_probs(self, module: Any, batch: Batch) -> torch.Tensor:
        """Normalised log-probabilities of the task's classes: rows x classes."""

    @abstractmethod
    def gold_log_prob(self, module: Any, batch: Batch) -> torch.Tensor:
        """The log-probability of each right answer: rows. Language models: of the whole answer."""

    def batches(self, rows: int, limit: int | None = None) -> Iterator[Batch]:
        """The first `limit` examples, at most `rows` at a time."""
        count = len(self) if limit is None else min(limit, len(self))
        for start in range(0, count, rows):
            yield self.collate(range(start, min(start + rows, count)))

    def batch_at(self, step: int, rows: int, seed: int) -> Batch:
        """The batch of a step of an endless stream, which meets every example once before any for a second time.

        A function of its arguments: a run that was cut off continues with the batches it would have met.
        """
        size = len(self)
        places = []
        for position in range(step * rows, (step + 1) * rows):
            epoch, place = divmod(position, size)
            places.append(_order(self.name, seed, epoch, size)[place])
        return self.collate(places)


_ORDERS: dict[tuple[str, int, int, int], list[int]] = {}


def _order(name: str, seed: int, epoch: int, size: int) -> list[int]:
    key = (name, seed, epoch, size)
    if key not in _ORDERS:
        if len(_ORDERS) > 64:
            _ORDERS.clear()
        order = list(range(size))
        Random(f"fusion_bench/stream/{name}/{seed}/{epoch}").shuffle(order)
        _ORDERS[key] = order
    return _ORDERS[key]


def stored_names(module: torch.nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Name of each parameter of a live module -> the name that the checkpoint stores it under.

    They differ for tied tensors, and where an architecture calls its parameters otherwise than its files do: the
    family that made the module says so.
    """
    renamed: Mapping[str, str] = getattr(module, "fusion_bench_checkpoint_names", {})
    return {name: checkpoint.stored(renamed.get(name, name)) for name, _ in module.named_parameters()}


@dataclass(frozen=True)
class Fitting:
    """The means of a fit.

    `tasks`: data by the name of the model they belong to; `load`: a checkpoint as a live module in eval mode, without
    gradients (:func:`stored_names` tells whose parameters they are); `token_stream`: module path of a layer -> the
    stream of tokens it works on, "" where none is padded; `held_out`: checkpoint -> primary score of each task on
    held-out data, from 0 to 1; `identity`: of the models by name, for caches (None keeps nothing on disk); `cache`: the
    folder for what is expensive, None for none.
    """

    tasks: Mapping[str, TaskData]
    load: Callable[[Checkpoint], torch.nn.Module]
    progress: Progress
    seed: int = 42
    protocol: Protocol = "disjoint"
    token_stream: Callable[[str], str] = lambda name: ""
    held_out: Callable[[Checkpoint], Mapping[str, float]] | None = None
    identity: Mapping[str, Any] | None = None
    cache: Path | None = None


@dataclass(frozen=True)
class Fitted:
    """An ordinary method with what was learnt inside.

    `record`: plain values for the report: costs, curves, coefficients; `remarks`: what a reader must be told.
    """

    method: ModelFusionAlgorithm
    record: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
