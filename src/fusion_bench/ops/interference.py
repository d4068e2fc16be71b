"""How much a merged matrix disturbs the tasks it was made of, and the matrix that disturbs them least.

The loss is the sum over tasks of ``‖(Δ−τi)τiᵀ‖²_F / ‖τi‖²_F``; its gradient is ``2(ΔC − D)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fusion_bench.ops.spectral import gram, product

FLOOR = 1e-8
"""Eigenvalues of C are lifted to this. A direction at the floor divides mere rounding by it, so it is left as it is."""
# Tasks with less energy take no part.
_ENERGY = 1e-12


@dataclass(frozen=True)
class Moments:
    r"""The sums that the loss depends on, for out x in matrices $\tau_i$ with $n_i = \|\tau_i\|_F^2$, in float64.

    `total`: $\sum \tau_i$; `c`: $C = \sum \tau_i^\top \tau_i / n_i$, in x in; `d`: $D = \sum \tau_i \tau_i^\top
    \tau_i / n_i$, out x in; `count`: number of tasks; `active`: how many of them have energy.
    """

    total: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor
    count: int
    active: int


def moments(deltas: Iterable[torch.Tensor]) -> Moments:
    """The sums over the tasks, each of which is used before the next is asked for. At least one is needed."""
    total = c = d = torch.empty(0)
    count = active = 0
    for delta in deltas:
        if not count:
            total = torch.zeros(delta.shape, dtype=torch.float64, device=delta.device)
            c = total.new_zeros(delta.shape[1], delta.shape[1])
            d = torch.zeros_like(total)
        count += 1
        total += delta
        energy = float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
        if energy < _ENERGY:
            continue
        active += 1
        inner = gram(delta).div_(energy)
        c += inner
        d += product(delta, inner)
    return Moments(total, c, d, count, active)


def spectrum(sums: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues of C, falling, and its eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(sums.c)
    return values.flip(0), vectors.flip(1)


def moved(
    sums: Moments, start: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor, factors: torch.Tensor
) -> torch.Tensor:
    r"""$\bar\theta - \bar\theta V \mathrm{diag}(f) V^\top + D V \mathrm{diag}(f / \ell) V^\top$.

    From `start` $\bar\theta$ the share $f$ of the way to the minimum of the loss, for the leading directions that have
    a factor. `start` is overwritten.
    """
    used = vectors[:, : len(factors)]
    step = sums.d @ (used * (factors / values[: len(factors)]))
    step -= start @ (used * factors)
    return start.addmm_(step, used.T)


def begun(sums: Moments, init: str) -> torch.Tensor:
    """Where to start: the `sum` of the tasks, their `mean`, or `zero`."""
    scale = {"sum": 1.0, "mean": 1 / sums.count, "zero": 0.0}[init]
    return sums.total * scale


def descended(sums: Moments, dtype: torch.dtype, iterations: int, learning_rate: float) -> torch.Tensor:
    """What Adam (0.9, 0.999, 1e-8) makes of the sum of the tasks in so many steps, in `dtype`."""
    merged, c, d = sums.total.to(dtype), sums.c.to(dtype), sums.d.to(dtype)
    mean, square = torch.zeros_like(merged), torch.zeros_like(merged)
    for step in range(1, iterations + 1):
        gradient = (merged @ c).sub_(d).mul_(2)
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = square.sqrt().div_((1 - 0.999**step) ** 0.5).add_(1e-8)
        merged.addcdiv_(mean, size, value=-learning_rate / (1 - 0.9**step))
    return merged
