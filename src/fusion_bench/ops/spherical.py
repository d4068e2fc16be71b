r"""Interpolation on spheres, and Model Stock, as coefficients of a linear combination.

Every one of these merges is $\sum_i c_i x_i$ with coefficients that depend on the Gram matrix
$G_{ij} = \langle x_i, x_j \rangle$ alone (float64). A cosine out of it is exact to about 1e-16, so the angle of nearly
parallel vectors is not; the coefficients, however, are smooth functions of its square, and are evaluated as such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

# Directions closer to each other or to their opposites than this are blended linearly.
LINEAR_ABOVE = 0.9995
# Cosines closer to 1 than this give no angle to divide by.
_ROUNDED = 1e-12
# A mean direction shorter than this is what rounding left of directions that cancel.
_CANCELLED = 1e-7
# Squared sines below this are rounding: the vectors are parallel.
_PARALLEL = 1e-14


def slerp(gram: torch.Tensor, t: float, linear_above: float = LINEAR_ABOVE) -> torch.Tensor:
    r"""$\frac{\sin((1-t)\varphi)}{\sin\varphi}, \frac{\sin(t\varphi)}{\sin\varphi}$ of Gram matrices (..., 2, 2).

    $1 - t, t$ where a vector is zero or $|\cos\varphi|$ is above `linear_above`.
    """
    product = gram.diagonal(dim1=-2, dim2=-1).sqrt().prod(-1)
    cosine = gram[..., 0, 1] / torch.where(product == 0, 1.0, product)
    straight = (product == 0) | (cosine.abs() > min(linear_above, 1 - _ROUNDED))
    angle = torch.acos(torch.where(straight, 0.0, cosine))
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    second = torch.where(straight, t, torch.sin(t * angle) / torch.sin(angle))
    return torch.stack((first, second), -1)


def stock_ratio(gram: torch.Tensor, floor: float) -> torch.Tensor:
    r"""$t = \frac{N c}{1 + (N-1) c}$, $c$ the mean cosine of all pairs, of Gram matrices (..., N, N) of task vectors.

    The product of two norms counts as `floor` at least; 0 where the denominator vanishes.
    """
    count = gram.shape[-1]
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    products = (norms[..., :, None] * norms[..., None, :]).clamp(min=floor)
    cosines = gram / torch.where(products == 0, 1.0, products)
    above = torch.triu(torch.ones(count, count, dtype=gram.dtype, device=gram.device), diagonal=1)
    cosine = (cosines * above).sum((-2, -1)) / (count * (count - 1) / 2)
    denominator = 1 + (count - 1) * cosine
    vanishes = denominator.abs() < 1e-8
    return torch.where(vanishes, 0.0, count * cosine / torch.where(vanishes, 1.0, denominator))


def norm_factor(gram: torch.Tensor, largest: bool) -> float:
    r"""$n^* / \|\bar x\|$ with $n^*$ the largest or the mean norm; 1 where the mean is zero.

    `gram`: of $x_1 \dots x_N, \bar x$, in this order.
    """
    *norms, middle = gram.diagonal().sqrt().tolist()
    wanted = max(norms) if largest else sum(norms) / len(norms)
    return float(wanted / middle) if middle > 1e-12 * max(norms) else 1.0


def chord_mean(gram: torch.Tensor, weights: Sequence[float]) -> tuple[float, ...] | None:
    r"""Coefficients of $\frac{m}{\|m\|} \sum_i w_i \|x_i\|$ with $m = \sum_i w_i x_i/\|x_i\|$; `weights` sum to 1.

    Zero vectors have no direction. None where the directions of more than two cancel; two that cancel are blended
    linearly.
    """
    norms, cosines = _directions(gram)
    shares = torch.tensor(weights, dtype=torch.float64)
    if not norms.any():
        return tuple(weights)
    point = _middle(cosines, shares)
    if point is None:
        return tuple(weights) if len(weights) == 2 else None
    return _of_vectors(point, norms, shares)


def karcher_mean(
    gram: torch.Tensor, weights: Sequence[float], iterations: int, tolerance: float
) -> tuple[float, ...] | None:
    r"""Coefficients of the mean $m$ on the sphere times $\sum_i w_i \|x_i\|$; `weights` sum to 1.

    $m \leftarrow \exp_m(\sum_i w_i \log_m(x_i/\|x_i\|))$ from the normalised mean on, until a step is shorter than
    `tolerance`, which is then left out. Zero vectors count in the norm alone. None and two vectors as in `chord_mean`.
    """
    norms, cosines = _directions(gram)
    shares = torch.tensor(weights, dtype=torch.float64)
    if not norms.any():
        return tuple(weights)
    among = torch.where(norms > 0, shares, 0.0)
    point = _middle(cosines, among / among.sum()) if float(among.sum()) else None
    if point is None:
        return tuple(weights) if len(weights) == 2 else None
    among = among / among.sum()
    for _ in range(iterations):
        along = (cosines @ point).clamp(-1.0, 1.0)
        pulls = among * torch.tensor([_log_factor(cosine) for cosine in along.tolist()], dtype=torch.float64)
        step = pulls - (pulls @ along) * point
        length = math.sqrt(max(0.0, float(step @ cosines @ step)))
        if length == 0 or length < tolerance:
            break
        point = math.cos(length) * point + math.sin(length) / length * step
        point = point / math.sqrt(float(point @ cosines @ point))
    return _of_vectors(point, norms, shares)


def _directions(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms, and the cosines of all pairs; 0 for zero vectors."""
    norms = gram.diagonal().sqrt()
    safe = torch.where(norms == 0, 1.0, norms)
    return norms, gram / safe[:, None] / safe[None, :]


def _middle(cosines: torch.Tensor, shares: torch.Tensor) -> torch.Tensor | None:
    """The normalised weighted mean of the directions, as coefficients of them; None where they cancel."""
    length = math.sqrt(max(0.0, float(shares @ cosines @ shares)))
    return shares / length if length >= _CANCELLED else None


def _of_vectors(point: torch.Tensor, norms: torch.Tensor, shares: torch.Tensor) -> tuple[float, ...]:
    """Coefficients of the vectors out of those of their directions, with the weighted mean norm."""
    scaled = point * (shares @ norms) / torch.where(norms == 0, 1.0, norms)
    return tuple(torch.where(norms == 0, 0.0, scaled).tolist())


def _log_factor(cosine: float) -> float:
    r"""$\theta / \sin\theta$, by which the part of a direction across another is stretched to the angle between them.

    1 for parallel and for opposite directions, where that part vanishes and leads nowhere.
    """
    square = (1 - cosine) * (1 + cosine)
    if square < _PARALLEL:
        return 1.0
    sine = math.sqrt(square)
    return math.atan2(sine, cosine) / sine
