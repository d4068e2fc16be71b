"""The linear layer that answers as several layers do, each on its own inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

# What is added to the diagonal, in mean diagonal entries: above the rounding of a matrix in this dtype.
_RIDGE = {torch.float32: 1e-7, torch.float64: 1e-12}

How = Literal["cholesky", "least squares"]


def regression(
    weights: Iterable[torch.Tensor], grams: Iterable[torch.Tensor], ratio: float, exact: bool
) -> tuple[torch.Tensor, How]:
    r"""$W^\top = (\sum \tilde G_i)^{-1} \sum \tilde G_i W_i^\top$ of weights (in x out) with Grams (in x in).

    $\tilde G$: entries off the diagonal times `ratio`. Solved in float64 for $W - \bar W$, the distance from the mean,
    by Cholesky with a ridge $\epsilon\,\mathrm{tr}(\sum \tilde G) / d$ ($\epsilon = 10^{-7}$; $10^{-12}$ where the
    Grams are `exact`, float64); so what no input ever shows stays the mean, and equal weights stay as they are. Where
    the sum is not positive definite all the same: the least squares solution nearest to the mean.

    Each tensor is used before the next is asked for. The result is in x out, float64.
    """
    left: torch.Tensor | None = None
    right = total = torch.empty(0)
    count = 0
    for weight, gram in zip(weights, grams, strict=True):
        wide, reduced = weight.double(), shrunk(gram.to(weight.device), ratio)
        if left is None:
            right, left, total = reduced @ wide, reduced, wide.clone()
        else:
            right.addmm_(reduced, wide)
            left.add_(reduced)
            total.add_(wide)
        count += 1
    if left is None:
        raise ValueError("no layers to merge")
    mean = total.div_(count)
    change, how = _solved(left, right.sub_(left @ mean), _RIDGE[torch.float64 if exact else torch.float32])
    return mean.add_(change), how


def shrunk(gram: torch.Tensor, ratio: float) -> torch.Tensor:
    """`gram` in float64 with its entries off the diagonal times `ratio`."""
    wide = gram.double()
    diagonal = wide.diagonal().clone()
    reduced = wide.mul(ratio)
    reduced.diagonal().copy_(diagonal)
    return reduced


def _solved(left: torch.Tensor, right: torch.Tensor, ridge: float) -> tuple[torch.Tensor, How]:
    mean_diagonal = left.diagonal().mean()
    ridged = left.clone()
    ridged.diagonal().add_(ridge * mean_diagonal)
    factor, fault = torch.linalg.cholesky_ex(ridged)
    if int(fault) == 0:
        return torch.cholesky_solve(right, factor), "cholesky"
    # On a GPU there are least squares for full rank alone.
    solution = torch.linalg.lstsq(left.cpu(), right.cpu(), rcond=ridge, driver="gelsd").solution
    return solution.to(left.device), "least squares"
