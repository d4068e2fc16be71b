"""Gram matrices of the gradients at the outputs of a model's linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.structure import Structure
from fusion_bench.errors import NonFiniteError
from fusion_bench.fitting import Batch, Fitting
from fusion_bench.statistics.base import Statistics
from fusion_bench.statistics.cache import Measured, kept
from fusion_bench.statistics.cost import metered
from fusion_bench.statistics.live import Layer, alive, digest_of, linear_layers
from fusion_bench.statistics.objectives import Estimator, objectives
from fusion_bench.statistics.uses import real_rows

if TYPE_CHECKING:
    import torch


def output_grams(
    model: str,
    checkpoint: Checkpoint,
    fitting: Fitting,
    structure: Structure,
    estimator: Estimator = "empirical",
    examples: int = 256,
) -> Statistics:
    r"""$B = \frac{1}{\#tokens} \sum g g^\top$ (out x out) of every linear layer, $g$ the gradient at its output.

    One example at a time; $g$ is that of the log-probability of the right answer (``empirical``) or of a drawn class
    (``sampled``), or runs over all classes by their probability (``true``). Tokens are those of the layer's stream,
    without padding. No gradient of a weight is made. Sums are float64, the result is in the module's dtype.

    Source: MaTS, arXiv 2312.04339.
    """
    data = fitting.tasks[model]
    count = min(examples, len(data))
    settings: dict[str, Any] = {"kind": "output_grams", "estimator": estimator, "examples": count}
    settings["layers"] = digest_of(structure.linear)
    if estimator == "sampled":
        settings["seed"] = fitting.seed

    def measure() -> Measured:
        import torch

        module = alive(model, checkpoint, fitting)
        layers = linear_layers(module, checkpoint, structure)
        gradients = _Gradients(layers, fitting)
        with (
            metered(module) as meter,
            gradients.attached(),
            fitting.progress.bar(f"gradients of {model}", count, "examples") as advance,
            torch.enable_grad(),
        ):
            for place in range(count):
                batch = data.collate([place])
                meter.batch(batch)
                gradients.batch = batch
                scalars = objectives(estimator, model, data, module, batch, place, fitting.seed)
                for left, scalar in zip(range(len(scalars) - 1, -1, -1), scalars, strict=True):
                    if scalar.requires_grad:
                        scalar.backward(retain_graph=left > 0)  # type: ignore[no-untyped-call]
                        meter.backward()
                del scalars
                advance(1)
        grams = gradients.grams(model)
        return Measured(grams, {name: name for name in grams}, {**meter.record(), **settings, "rows": gradients.rows})

    return kept(fitting, [model], settings, measure)


class _Gradients:
    """Running sums of $g g^\\top$ by parameter. `batch`: what runs now; `rows`: tokens counted."""

    def __init__(self, layers: Sequence[Layer], fitting: Fitting) -> None:
        self.batch: Batch | None = None
        self.rows: dict[str, int] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._layers, self._stream = layers, fitting.token_stream

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watches the outputs of the layers while this lasts."""
        handles = [layer.module.register_forward_hook(self._hook(layer)) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: Layer) -> Any:
        stream = self._stream(layer.path)

        def after(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
            import torch

            if not torch.is_grad_enabled():
                return output
            if not output.requires_grad:
                # The graph begins here. A copy, since a leaf must not be written to in place.
                output = output.requires_grad_(True).clone()
            batch = self.batch
            assert batch is not None
            width = output.shape[-1]
            if layer.name not in self._sums:
                self._sums[layer.name] = torch.zeros(width, width, dtype=torch.float64, device=output.device)
                self.rows[layer.name] = 0
            self.rows[layer.name] += len(real_rows(output.detach(), batch, stream)[0])

            def add(gradient: torch.Tensor) -> None:
                rows, _ = real_rows(gradient.detach(), batch, stream)
                self._sums[layer.name].add_(rows.T @ rows)

            output.register_hook(add)  # type: ignore[no-untyped-call]
            return output

        return after

    def grams(self, model: str) -> dict[str, torch.Tensor]:
        """The sums divided by their tokens, in the dtype of the layers, on the CPU. NonFiniteError."""
        import torch

        dtypes = {layer.name: layer.weight.dtype for layer in self._layers}
        found = {}
        for name in list(self._sums):
            found[name] = self._sums.pop(name).div_(max(1, self.rows[name])).to(dtypes[name]).cpu()
            if not torch.isfinite(found[name]).all():
                raise NonFiniteError(
                    f"model {model!r}: the gradients at the output of {name!r} are NaN or infinite. "
                    "Check the model's weights and the data."
                )
        return found
