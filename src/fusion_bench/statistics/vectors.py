"""The whole Fisher information of the short vectors of (IA)^3."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
from fusion_bench.fitting import Fitting
from fusion_bench.statistics.base import Statistics
from fusion_bench.statistics.cache import Measured, kept
from fusion_bench.statistics.cost import metered
from fusion_bench.statistics.live import alive, parameters_of
from fusion_bench.statistics.objectives import Estimator, objectives

_VECTOR: Final = re.compile(r"(^|[._])ia3_l([._]|$)")


def is_vector(name: str, info: TensorInfo) -> bool:
    """Whether this is a scaling vector of (IA)^3: n entries, as n, n x 1 or 1 x n."""
    return bool(_VECTOR.search(name)) and info.floating and 0 < info.numel == max(info.shape, default=0)


def vector_fishers(
    model: str,
    checkpoint: Checkpoint,
    fitting: Fitting,
    names: Iterable[str],
    estimator: Estimator = "empirical",
    examples: int = 256,
) -> Statistics:
    r"""$F = \frac1n \sum_x \nabla\ell \nabla\ell^\top$ (n x n) of each named vector, one example at a time.

    Source: MaTS, arXiv 2312.04339; (IA)^3, arXiv 2205.05638.
    """
    data = fitting.tasks[model]
    chosen = sorted(names)
    settings = {
        "kind": "vector_fishers", "estimator": estimator, "examples": min(examples, len(data)), "names": chosen,
        **({"seed": fitting.seed} if estimator == "sampled" else {}),
    }  # fmt: skip

    def measure() -> Measured:
        import torch

        module = alive(model, checkpoint, fitting)
        parameters = {name: each for name, each in parameters_of(module, checkpoint).items() if name in chosen}
        sums = {n: torch.zeros(p.numel(), p.numel(), dtype=torch.float64) for n, p in parameters.items()}
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        count = min(examples, len(data))
        with (
            metered(module) as meter,
            fitting.progress.bar(f"Fisher of {model}", count, "examples") as advance,
            torch.enable_grad(),
        ):
            for place in range(count):
                batch = data.collate([place])
                meter.batch(batch)
                for scalar in objectives(estimator, model, data, module, batch, place, fitting.seed):
                    if not scalar.requires_grad:
                        continue
                    wanted = list(parameters.values())
                    found = torch.autograd.grad(scalar, wanted, retain_graph=True, allow_unused=True)
                    meter.backward()
                    for name, gradient in zip(parameters, found, strict=True):
                        if gradient is not None:
                            flat = gradient.reshape(-1).double().cpu()
                            sums[name].addr_(flat, flat, alpha=1 / count)
                advance(1)
        tensors = {name: whole.to(parameters[name].dtype) for name, whole in sums.items()}
        return Measured(tensors, {name: name for name in tensors}, {**meter.record(), **settings})

    return kept(fitting, [model], settings, measure)
