"""Conjugate gradients for systems that are known by their products alone, many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Product = Callable[[torch.Tensor], torch.Tensor]
"""X -> C X, linear, symmetric and positive semi-definite, of each system (..., n, m) for itself."""


@dataclass(frozen=True)
class Solved:
    """`x`: (..., n, m); `norms`: the norm of the residual before the first and after every step, (steps + 1, ...).

    A system that is done keeps its last norm. `steps`: how many each took; `right`: the norms of the right sides.
    """

    x: torch.Tensor
    norms: torch.Tensor
    steps: torch.Tensor
    right: torch.Tensor


def conjugate_gradient(
    product: Product,
    right: torch.Tensor,
    start: torch.Tensor,
    iterations: int,
    tolerance: float = 1e-5,
    diagonal: torch.Tensor | None = None,
) -> Solved:
    r"""X with $C X = B$ from $X_0$: `right` is B, `start` is $X_0$, both (..., n, m), a system by its last two sizes.

    $r = B - CX$, $p = z + \beta p$, $\alpha = \langle r, z \rangle / \langle p, Cp \rangle$; $z = r$, or r over
    `diagonal` (that of C, where it is positive: Jacobi). A system stops at $\|r\| \le$ tolerance $\|B\|$, and where
    $\langle p, Cp \rangle \le 0$, which rounding makes of directions that C does not see; its X is then left as it is.
    Directions in which neither B nor C has anything keep $X_0$. Inner products are summed in float64.
    """
    x = start.clone()
    residual = right - product(x)
    bound = _norm(right) * tolerance
    norm = _norm(residual)
    norms, steps = [norm], torch.zeros(norm.shape, dtype=torch.int64, device=norm.device)
    z = _conditioned(residual, diagonal)
    direction = z.clone()
    level = _inner(residual, z)
    active = norm > bound
    for _ in range(iterations):
        if not bool(active.any()):
            break
        image = product(direction)
        curvature = _inner(direction, image)
        active = active & (curvature > 0)
        if not bool(active.any()):
            break
        step = _spread(torch.where(active, level / curvature.where(active, 1), 0), x)
        x.addcmul_(step, direction)
        residual.addcmul_(step, image, value=-1)
        norm = torch.where(active, _norm(residual), norm)
        norms.append(norm)
        steps += active
        z = _conditioned(residual, diagonal)
        lower = _inner(residual, z)
        factor = torch.where(active & (level > 0), lower / level.where(level > 0, 1), 0)
        direction.mul_(_spread(factor, x)).add_(z)
        level = lower
        active = active & (norm > bound)
    return Solved(x, torch.stack(norms), steps, _norm(right))


def _conditioned(residual: torch.Tensor, diagonal: torch.Tensor | None) -> torch.Tensor:
    return residual if diagonal is None else residual / torch.where(diagonal > 0, diagonal, 1)


def _inner(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left * right).sum(dim=(-2, -1), dtype=torch.float64)


def _norm(values: torch.Tensor) -> torch.Tensor:
    return _inner(values, values).sqrt()


def _spread(factors: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return factors.to(like.dtype)[..., None, None]
