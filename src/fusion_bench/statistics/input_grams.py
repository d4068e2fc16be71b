"""Gram matrices of what the linear layers of a model are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.structure import Structure
from fusion_bench.errors import NonFiniteError
from fusion_bench.fitting import Batch, Fitting, TaskData
from fusion_bench.statistics.base import Statistics
from fusion_bench.statistics.cache import Measured, kept
from fusion_bench.statistics.cost import Meter, metered
from fusion_bench.statistics.live import Layer, alive, digest_of, linear_layers
from fusion_bench.statistics.uses import Uses, real_rows, uses_of, watched

if TYPE_CHECKING:
    import torch


def input_grams(
    model: str,
    checkpoint: Checkpoint,
    fitting: Fitting,
    structure: Structure,
    examples: int = 256,
    batch_size: int = 16,
    count_padding: bool = False,
) -> Statistics:
    r"""$G = X^\top X / \#tokens$ (in x in) of every linear layer, on the first `examples` of the model's task.

    Rows of $X$ are the layer's inputs at every real token (`count_padding`: at padding, too). Layers that are given
    the same tensor (q, k and v; keys and values of cross-attention) share one matrix; that is seen on the first
    example and verified on every batch. Products of a batch are made in the module's dtype and summed in float64; the
    result is in the module's dtype. Memory: the model, one float64 matrix for each input, one batch.

    Layers that never run, and weights that other modules use, have none.
    """
    data = fitting.tasks[model]
    settings: dict[str, Any] = {
        "kind": "input_grams",
        "examples": min(examples, len(data)),
        "count_padding": count_padding,
    }
    settings["layers"] = digest_of(structure.linear)

    def measure() -> Measured:
        module = alive(model, checkpoint, fitting)
        layers = linear_layers(module, checkpoint, structure)
        with metered(module) as meter:
            uses = uses_of(module, layers, data)
            what = f"Grams of {model}"
            sums = gathered(model, module, layers, uses, fitting, examples, batch_size, count_padding, what, meter)
        grams = sums.grams(model, data)
        return Measured(grams, sums.index, {**meter.record(), **settings, **sums.notes()})

    return kept(fitting, [model], settings, measure)


def gathered(
    model: str,
    module: torch.nn.Module,
    layers: Sequence[Layer],
    uses: Uses,
    fitting: Fitting,
    examples: int,
    batch_size: int,
    count_padding: bool,
    what: str,
    meter: Meter,
    stop: bool = False,
) -> GramSums:
    """The sums over a model's data; `stop`: each forward ends at the last call of `uses`.

    Where the uses change from batch to batch, every layer has a matrix of its own.
    """
    data = fitting.tasks[model]
    count = min(examples, len(data))
    for shared in (True, False):
        sums = GramSums(layers, uses, fitting.token_stream, count_padding, shared, stop and shared)
        try:
            with fitting.progress.bar(what, count, "examples") as advance:
                for batch in data.batches(batch_size, examples):
                    meter.batch(batch)
                    sums.add(module, data, batch)
                    advance(len(batch))
            break
        except _UnstableUsesError:
            continue
    meter.flops += sums.flops
    return sums


class _EarlyExitError(Exception):
    """Ends a forward whose remaining layers are not looked at."""


class _UnstableUsesError(Exception):
    """A batch gave layers other inputs in common than the first example did."""


class GramSums:
    """Running sums of $X^\\top X$ by the inputs of layers. `flops`: operations of the products."""

    def __init__(
        self,
        layers: Sequence[Layer],
        uses: Uses,
        token_stream: Callable[[str], str],
        count_padding: bool,
        shared: bool,
        stop: bool,
    ) -> None:
        self.flops = 0.0
        self._layers = [layer for layer in layers if not shared or layer.name in uses.signatures]
        self._uses, self._stream, self._count_padding = uses, token_stream, count_padding
        self._shared, self._last = shared, len(uses.calls) if stop else -1
        self._sums: dict[str, torch.Tensor] = {}
        self._rows: dict[str, int] = {}
        self._unmasked: set[str] = set()

    @property
    def index(self) -> dict[str, str]:
        """Parameter -> the parameter whose name the matrix bears."""
        leaders = self._uses.leaders if self._shared else {name: name for name in self._rows}
        return {name: leader for name, leader in leaders.items() if leader in self._rows}

    def add(self, module: torch.nn.Module, data: TaskData, batch: Batch) -> None:
        """Runs the module over a batch and adds what its layers are given."""
        import torch

        def see(layer: Layer, given: torch.Tensor, number: int) -> None:
            if not self._shared or self._uses.leaders.get(layer.name) == layer.name:
                self._accumulate(layer, given, batch)
            if len(watch.calls) == self._last:
                raise _EarlyExitError

        with watched(self._layers, see) as watch, torch.no_grad(), suppress(_EarlyExitError):
            data.forward(module, batch)
        if self._shared and watch.uses.signatures != self._uses.signatures:
            raise _UnstableUsesError

    def _accumulate(self, layer: Layer, given: torch.Tensor, batch: Batch) -> None:
        import torch

        rows, fits = real_rows(given.detach(), batch, "" if self._count_padding else self._stream(layer.path))
        if not fits:
            self._unmasked.add(layer.name)
        width = rows.shape[1]
        if layer.name not in self._sums:
            self._sums[layer.name] = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
            self._rows[layer.name] = 0
        self._sums[layer.name].add_(rows.T @ rows)
        self._rows[layer.name] += len(rows)
        self.flops += 2.0 * len(rows) * width * width

    def grams(self, model: str, data: TaskData) -> dict[str, torch.Tensor]:
        """The sums divided by their tokens, in the dtype of the layers, on the CPU. NonFiniteError."""
        import torch

        dtypes = {layer.name: layer.weight.dtype for layer in self._layers}
        found = {}
        for name in list(self._rows):
            # One after the other, so that the sums and the result never stand side by side as a whole.
            whole = self._sums.pop(name).div_(max(1, self._rows[name])).to(dtypes[name]).cpu()
            if not torch.isfinite(whole).all():
                raise NonFiniteError(
                    f"model {model!r}: the inputs of {name!r} on the data of {data.name!r} are NaN or infinite. "
                    "Check the model's weights and the data."
                )
            found[name] = whole
        return found

    def notes(self) -> dict[str, Any]:
        """What a reader of the record must know: rows by matrix, layers whose padding could not be told apart."""
        notes: dict[str, Any] = {"rows": dict(self._rows)}
        if self._unmasked:
            notes["padding_not_told_apart"] = sorted(self._unmasked)
        return notes
