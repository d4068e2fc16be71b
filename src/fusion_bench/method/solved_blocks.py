"""Linear layers merged by regression block by block, each on what the merged blocks before it give."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.errors import NonFiniteError
from fusion_bench.fitting import Fitting
from fusion_bench.method.base import Inputs, Slot, TensorMethod
from fusion_bench.parallel import ordered_map

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.statistics import Statistics
    from fusion_bench.statistics.cost import Meter


@dataclass(frozen=True)
class Settled(TensorMethod):
    """Tensors that were merged beforehand as they are, the mean of the models for the others."""

    source = "RegMean++, arXiv 2508.03121"

    solutions: Any = hyper(None, "the tensors merged beforehand, as statistics")

    def holds(self, inputs: Inputs) -> int:
        return 0 if self.solutions is None else int(self.solutions.held)

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        from fusion_bench.ops import linear

        if self.solutions is None or slot.name not in self.solutions:
            return linear.mean(slot.models, len(slot.model_names))
        solved: torch.Tensor = self.solutions.read(slot.name, slot.start, slot.stop)
        return solved

    def remarks(self, inputs: Inputs, state: Any) -> list[str]:
        count = 0 if self.solutions is None else len(self.solutions.index)
        return [f"{count} of {len(inputs.alignment.floating)} tensors are solved for, the others averaged"]


@dataclass(frozen=True)
class Progressive:
    """How blocks are merged. `ratio`: of entries off the diagonal of a Gram; the rest as in RegMean."""

    ratio: float
    examples: int
    batch_size: int
    count_padding: bool

    def solve(self, inputs: Inputs, fitting: Fitting) -> Statistics:
        r"""The merged linear layers, and what finding them cost.

        What lies outside of the blocks is averaged first. Then, in the order in which they run, of each block: every
        model's own weights of the block are put in turn into the one live module, whose earlier blocks are merged, and
        its task's data run up to the block's last layer; the Grams of all models give the merged block.
        Memory: one module, and the Grams of one block of every model.
        """
        from fusion_bench.statistics.cache import Measured, kept
        from fusion_bench.statistics.live import digest_of

        settings = {
            "kind": "regmean_plus_plus", "ratio": self.ratio, "count_padding": self.count_padding,
            "layers": digest_of(inputs.structure.linear),
            "examples": {name: min(self.examples, len(fitting.tasks[name])) for name in inputs.models},
        }  # fmt: skip

        def measure() -> Measured:
            from fusion_bench.statistics.cost import metered
            from fusion_bench.statistics.live import alive, linear_layers, tensors_of
            from fusion_bench.statistics.uses import uses_of

            first = next(iter(inputs.models))
            module = alive(first, inputs.models[first], fitting)
            layers = linear_layers(module, inputs.reference, inputs.structure)
            uses = uses_of(module, layers, fitting.tasks[first])
            blocks = blocks_of(inputs, uses.order)
            live = tensors_of(module, inputs.reference)
            inside = frozenset(name for block in blocks for name in block)
            _merge(inputs, live, {}, self.ratio, [name for name in inputs.alignment.floating if name not in inside])
            solutions: dict[str, torch.Tensor] = {}
            fallen_back: list[str] = []
            with metered(module) as meter:
                for number, block in enumerate(blocks, 1):
                    what = f"block {number} of {len(blocks)}"
                    named = [layer for layer in layers if layer.name in block]
                    found = {}
                    for model, checkpoint in inputs.models.items():
                        _fill(live, model, checkpoint, block)
                        found[model] = self._grams(model, module, named, uses.only(block), fitting, what, meter)
                    solved, notes = _merge(inputs, live, found, self.ratio, block)
                    solutions.update(solved)
                    fallen_back += notes
            record = {**meter.record(), **settings, "blocks": len(blocks), "fallbacks": fallen_back}
            return Measured(solutions, {name: name for name in solutions}, record)

        return kept(fitting, list(inputs.models), settings, measure)

    def _grams(
        self,
        model: str,
        module: torch.nn.Module,
        layers: Sequence[Any],
        uses: Any,
        fitting: Fitting,
        what: str,
        meter: Meter,
    ) -> Statistics:
        from fusion_bench.statistics import Statistics
        from fusion_bench.statistics.input_grams import gathered

        sums = gathered(
            model, module, layers, uses, fitting, self.examples, self.batch_size, self.count_padding,
            f"{what}, {model}", meter, stop=True,
        )  # fmt: skip
        return Statistics.of(sums.grams(model, fitting.tasks[model]), sums.index)


def blocks_of(inputs: Inputs, order: Sequence[str]) -> list[tuple[str, ...]]:
    """The floating tensors of each block, in the order in which the blocks first run.

    `order`: linear weights as they run. A linear layer outside of every block is a block of its own; blocks in which no
    linear layer runs are left out.
    """
    members: dict[str, list[str]] = {}
    for name in inputs.alignment.floating:
        members.setdefault(_block(name, inputs), []).append(name)
    return [tuple(members[key]) for key in dict.fromkeys(_block(name, inputs) for name in order) if key in members]


def _block(name: str, inputs: Inputs) -> str:
    """What tells the block of a tensor from others: the part of its name up to the first number."""
    if name not in inputs.structure.blocks:
        return name
    parts = name.split(".")
    at = next(place for place, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: at + 1]) + "."


def _merge(
    inputs: Inputs,
    live: Mapping[str, torch.Tensor],
    statistics: Mapping[str, Statistics],
    ratio: float,
    names: Collection[str],
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Merges tensors into the live module: the solutions of those with statistics, and which needed least squares."""
    import torch

    from fusion_bench.method.engine import MergedCheckpoint
    from fusion_bench.method.fisher_weighted import FisherWeighted
    from fusion_bench.method.solved_regression import SolvedRegression

    method: TensorMethod = SolvedRegression(statistics=statistics, ratio=ratio) if statistics else FisherWeighted()
    merged = MergedCheckpoint(method, inputs.only(names))
    merged = MergedCheckpoint(
        method, replace(merged.inputs, dtype="F64" if merged.compute_dtype == torch.float64 else "F32")
    )
    solutions: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, tensor in _read(merged, inputs.threads):
            if name in live:
                live[name].copy_(tensor)
            if all(name in found for found in statistics.values()) and statistics:
                solutions[name] = tensor
    return solutions, sorted(merged.prepare().notes) if statistics else []


def _read(merged: Checkpoint, threads: int) -> Iterator[tuple[str, torch.Tensor]]:
    names = list(merged)
    yield from zip(names, ordered_map(lambda name: merged[name], names, threads), strict=True)


def _fill(live: Mapping[str, torch.Tensor], model: str, checkpoint: Checkpoint, names: Collection[str]) -> None:
    """Puts a model's own tensors into the live module."""
    import torch

    with torch.no_grad():
        for name in names:
            if name not in live:
                continue
            tensor = checkpoint[name]
            if not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"model {model!r}: tensor {name!r} holds NaN or infinite entries.\n"
                    "Repair the file, or leave the model out (modelpool.select)."
                )
            live[name].copy_(tensor)
