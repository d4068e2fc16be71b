"""Singular vectors and polar factors of matrices, in float64 whatever the matrix holds.

Two ways lead there: the eigenvectors of the smaller Gram matrix, which is faster, and the singular value decomposition,
which is exact to the last bits of float64. The first squares the singular values: those below 1e-5 of the largest one
drown in rounding. It therefore serves float32 matrices alone, and hands over to the second where it cannot tell a small
direction from none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

NULL = 1e-6
"""Directions with a singular value below this share of the largest one are null: their vectors are arbitrary."""

# Eigenvalues of a Gram matrix, over the largest: below the first they are rounding, above the second they are sound.
_NOISE, _SOUND = 1e-14, 1e-10
# Rows are converted to float64 in blocks of about this many entries.
_BLOCK = 1 << 20


class Factors(NamedTuple):
    """The matrix is ``left @ diag(values) @ right.T``: left m x k, values k (falling), right n x k."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def factors(
    matrix: torch.Tensor, count: int | None = None, null: float = NULL, scale: float | None = None, exact: bool = False
) -> Factors:
    """The `count` leading singular directions that are not null.

    Null is what lies below `null` times `scale`, the largest singular value where none is given; nothing is null where
    `null` is negative. `exact` takes the singular value decomposition in any case.
    """
    count = min(matrix.shape) if count is None else min(count, *matrix.shape)
    if count == 0:
        return Factors(*(torch.zeros(*shape, 0, dtype=torch.float64, device=matrix.device)
                         for shape in ((matrix.shape[0],), (), (matrix.shape[1],))))  # fmt: skip
    found = None if exact or null < 0 else _by_gram(matrix, count)
    found = found or _by_svd(matrix, count)
    return found if null < 0 else above(found, null * (float(found.values[0]) if scale is None else scale))


def above(found: Factors, floor: float) -> Factors:
    """The directions with a singular value of at least `floor` and above 0."""
    kept = (found.values >= floor) & (found.values > 0)
    if bool(kept.all()):
        return found
    return Factors(found.left[:, kept], found.values[kept], found.right[:, kept])


def polar(matrix: torch.Tensor, null: float = NULL, exact: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    r"""$PQ^\top$ of $X = P S Q^\top$ over the directions that are not null, and their singular values, falling."""
    if not exact and null >= 0 and matrix.numel():
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        energies, vectors = torch.linalg.eigh(gram(tall))
        if _sound(energies):
            kept = (energies >= null**2 * energies[-1]) & (energies > 0)
            roots, vectors = energies[kept].sqrt(), vectors[:, kept]
            factor = product(tall, (vectors / roots) @ vectors.T)
            return (factor if tall is matrix else factor.T), roots.flip(0)
    found = factors(matrix, null=null, exact=True)
    return found.left @ found.right.T, found.values


def largest(matrix: torch.Tensor) -> float:
    """The largest singular value."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return max(0.0, float(torch.linalg.eigvalsh(gram(tall))[-1])) ** 0.5 if matrix.numel() else 0.0


def rebuilt(found: Factors) -> torch.Tensor:
    """``left @ diag(values) @ right.T``."""
    return (found.left * found.values) @ found.right.T


def total(matrices: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum in float64, so that its small singular directions do not hang on the order. At least one is needed."""
    out = torch.empty(0)
    for number, matrix in enumerate(matrices):
        out = out.add_(matrix) if number else matrix.to(torch.float64, copy=True)
    return out


def gram(matrix: torch.Tensor) -> torch.Tensor:
    r"""$X^\top X$ in float64."""
    out = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in torch.split(matrix, _rows(matrix)):
        wide = rows.double()
        out.addmm_(wide.T, wide)
    return out


def product(matrix: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``matrix @ other`` in float64."""
    out = torch.empty(matrix.shape[0], other.shape[1], dtype=torch.float64, device=matrix.device)
    other, step = other.double(), _rows(matrix)
    for rows, into in zip(torch.split(matrix, step), torch.split(out, step), strict=True):
        torch.mm(rows.double(), other, out=into)
    return out


def _rows(matrix: torch.Tensor) -> int:
    return max(1, _BLOCK // max(1, matrix.shape[1]))


def _sound(energies: torch.Tensor) -> bool:
    """Whether every eigenvalue is either clear of rounding or rounding alone."""
    top = energies.max()
    return not bool(((energies > _NOISE * top) & (energies < _SOUND * top)).any())


def _by_gram(matrix: torch.Tensor, count: int) -> Factors | None:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    energies, vectors = torch.linalg.eigh(gram(tall))
    if not _sound(energies[-count:]):
        return None
    near = vectors[:, -count:].flip(1)
    far = product(tall, near)
    # The length of Xv is exact to more digits than the root of the eigenvalue.
    values = torch.linalg.vector_norm(far, dim=0)
    far /= torch.where(values > 0, values, 1.0)
    return Factors(far, values, near) if tall is matrix else Factors(near, values, far)


def _by_svd(matrix: torch.Tensor, count: int) -> Factors:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return Factors(left[:, :count], values[:count], right[:count].T)
