"""The diagonal of the Fisher information of a model's parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.errors import NonFiniteError
from fusion_bench.fitting import Fitting, TaskData
from fusion_bench.statistics.base import Statistics
from fusion_bench.statistics.cache import Measured, kept
from fusion_bench.statistics.cost import Meter, metered
from fusion_bench.statistics.live import alive, digest_of, is_finite, parameters_of
from fusion_bench.statistics.objectives import objectives

if TYPE_CHECKING:
    import torch

FisherEstimator = Literal["true", "sampled", "empirical", "fusionbench"]


def diagonal_fisher(
    model: str,
    checkpoint: Checkpoint,
    fitting: Fitting,
    estimator: FisherEstimator = "true",
    examples: int = 256,
    batch_size: int = 32,
) -> Statistics:
    r"""$F_j$ of every parameter of the model, on the first `examples` of its task.

    ``true``: $\frac1n \sum_x \sum_c p(c|x) (\partial_j \log p(c|x))^2$, exact over the classes; ``sampled``: one
    $c \sim p(\cdot|x)$; ``empirical``: the right answer. ``fusionbench``: $\frac1n \sum_b g_b^2$ with the gradient of
    $\sum_{x \in b} \sum_c \sqrt{p_c} \log p_c$ over batches of `batch_size`, $\sqrt{p_c}$ held fixed; no Fisher, since
    products of different examples remain in it.

    The other three run one example at a time. Memory: the model, one accumulator, what one example needs. Squares are
    summed in the module's dtype. Source: Fisher merging, arXiv 2111.09832.
    """
    data = fitting.tasks[model]
    settings: dict[str, Any] = {"kind": "diagonal_fisher", "estimator": estimator, "examples": min(examples, len(data))}
    settings["names"] = digest_of(checkpoint)
    if estimator == "fusionbench":
        settings["batch_size"] = batch_size
    if estimator == "sampled":
        settings["seed"] = fitting.seed

    def measure() -> Measured:
        import torch

        module = alive(model, checkpoint, fitting)
        count = min(examples, len(data))
        parameters = parameters_of(module, checkpoint)
        with torch.enable_grad(), metered(module) as meter, _squaring(parameters, 1 / max(1, count)) as squares:
            for scalars in _scalars(estimator, model, data, module, fitting, count, batch_size, meter):
                for left, scalar in zip(range(len(scalars) - 1, -1, -1), scalars, strict=True):
                    if scalar.requires_grad:
                        scalar.backward(retain_graph=left > 0)  # type: ignore[no-untyped-call]
                        meter.backward()
        _require_finite(squares, model, data)
        tensors = {name: square.cpu() for name, square in squares.items()}
        return Measured(tensors, {name: name for name in tensors}, {**meter.record(), **settings})

    return kept(fitting, [model], settings, measure)


def _scalars(
    estimator: FisherEstimator,
    model: str,
    data: TaskData,
    module: Any,
    fitting: Fitting,
    count: int,
    batch_size: int,
    meter: Meter,
) -> Iterator[list[torch.Tensor]]:
    """For each step the scalars whose squared gradients are summed."""
    rows = batch_size if estimator == "fusionbench" else 1
    with fitting.progress.bar(f"Fisher of {model}", count, "examples") as advance:
        for start in range(0, count, rows):
            batch = data.collate(range(start, min(start + rows, count)))
            meter.batch(batch)
            if estimator == "fusionbench":
                logs = data.log_probs(module, batch)
                logs = logs[logs > -math.inf]
                yield [(logs.detach().exp().sqrt() * logs).sum()]
            else:
                yield objectives(estimator, model, data, module, batch, start, fitting.seed)
            advance(len(batch))


@contextmanager
def _squaring(parameters: dict[str, torch.nn.Parameter], factor: float) -> Iterator[dict[str, torch.Tensor]]:
    """While this lasts every backward pass adds its squared gradients times `factor`; no gradient outlives its square.

    A tied parameter is one parameter, whose gradient is complete when its hook runs.
    """
    import torch

    squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def hook(name: str) -> Any:
        def square(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            squares[name].addcmul_(parameter.grad, parameter.grad, value=factor)
            parameter.grad = None

        return square

    handles = []
    for name, parameter in parameters.items():
        squares[name].requires_grad_(False)
        parameter.requires_grad_(True)
        handles.append(parameter.register_post_accumulate_grad_hook(hook(name)))  # type: ignore[no-untyped-call]
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.requires_grad_(False)


def _require_finite(squares: dict[str, torch.Tensor], model: str, data: TaskData) -> None:
    bad = [name for name, square in squares.items() if not is_finite(square)]
    if bad:
        raise NonFiniteError(
            f"model {model!r}: gradients on the data of {data.name!r} are NaN or infinite in {len(bad)} tensors, such "
            f"as {bad[0]!r}. Check the model's weights and the data."
        )
