"""Bases, factors and truncations of matrices of low rank; everything in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Directions that weigh less, relative to the largest, are rounding of float32 factors.
NULL = 1e-6


def column_basis(blocks: Sequence[torch.Tensor], null: float = NULL) -> torch.Tensor:
    """Orthonormal columns that span the columns of all blocks, as the SVD of ``[block | block | …]`` gives them.

    Directions below ``null`` times the largest singular value are left out, unless a block of small norm needs them:
    each block is spanned up to ``null`` of its own norm.
    """
    basis = _left([block.to(torch.float64) for block in blocks], null)
    left = []
    for block in blocks:
        norm = float(block.norm())
        if norm > 0:
            wide = block.to(torch.float64)
            rest = (wide - basis @ (basis.t() @ wide)) / norm
            if float(rest.norm()) > null:
                left.append(rest)
    if not left:
        return basis
    more = _left(left, 0.0, floor=null)
    more = more - basis @ (basis.t() @ more)
    return torch.cat([basis, torch.linalg.qr(more)[0]], dim=1)


def _left(blocks: Sequence[torch.Tensor], null: float, floor: float = 0.0) -> torch.Tensor:
    orthonormal, triangle = torch.linalg.qr(torch.cat(list(blocks), dim=1))
    left, values, _ = torch.linalg.svd(triangle, full_matrices=False)
    least = null * float(values[0]) if values.numel() else 0.0
    kept = int(((values > floor) & (values >= least)).sum())
    return torch.matmul(orthonormal, left[:, :kept])


def joint_parts(
    ups: Sequence[torch.Tensor], downs: Sequence[torch.Tensor], null: float
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    r"""U, and for each model C and Q with $\Sigma V_i^T = C_i Q_i$, of $[B_1 A_1 | … | B_N A_N] = U \Sigma V^T$.

    Found from the factors: with $B = P R$ and $A_i = L_i Q_i$ the SVD of the small $[R_1 L_1 | … | R_N L_N]$ is all it
    takes. Singular values up to ``null * min(1, the largest)`` are dropped. `ups`: out x r_i, `downs`: r_i x in.
    """
    orthonormal, triangle = torch.linalg.qr(torch.cat([up.to(torch.float64) for up in ups], dim=1))
    small, rows, done = [], [], 0
    for down in downs:
        right, lower = torch.linalg.qr(down.to(torch.float64).t())
        small.append(triangle[:, done : done + down.shape[0]] @ lower.t())
        rows.append(right.t())
        done += down.shape[0]
    left, values, right = torch.linalg.svd(torch.cat(small, dim=1), full_matrices=False)
    largest = float(values[0]) if values.numel() else 0.0
    kept = int((values > null * min(1.0, largest)).sum())
    coefficients, done = [], 0
    for part in small:
        coefficients.append(values[:kept, None] * right[:kept, done : done + part.shape[1]])
        done += part.shape[1]
    return orthonormal @ left[:, :kept], coefficients, rows


def split(
    matrix: torch.Tensor, rank: int | float | None, null: float
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """B, A and the squared norms kept and given: ``B @ A`` is the best approximation of `matrix` of its rank.

    `rank`: of the result at most; a share up to 1 (a float) asks for the least rank that keeps this share
    of the squared norm; None or 1.0 keeps all but singular values up to `null` times the largest. B and A share the
    singular values evenly, so neither is much larger than the other.
    """
    left, values, right = torch.linalg.svd(matrix.to(torch.float64), full_matrices=False)
    kept = count(values, rank, null)
    roots = values[:kept].sqrt()
    squares = values.square()
    return left[:, :kept] * roots, roots[:, None] * right[:kept], float(squares[:kept].sum()), float(squares.sum())


def dominant(
    matrix: torch.Tensor, rank: int | float | None, null: float
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """As `split`, for large matrices: from the eigenvectors of the smaller of ``M M^T`` and ``M^T M``.

    Singular values below about 1e-8 of the largest are not resolved.
    """
    wide = matrix.to(torch.float64)
    if wide.shape[0] > wide.shape[1]:
        up, down, kept, given = dominant(wide.t(), rank, null)
        return down.t(), up.t(), kept, given
    squares, vectors = torch.linalg.eigh(wide @ wide.t())
    values = squares.flip(0).clamp_min(0).sqrt()
    vectors = vectors.flip(1)
    number = count(values, rank, null)
    roots = values[:number].sqrt()
    down = (vectors[:, :number].t() @ wide) / roots[:, None]
    given = float(wide.square().sum())
    return vectors[:, :number] * roots, down, min(given, float(values[:number].square().sum())), given


def count(values: torch.Tensor, rank: int | float | None, null: float) -> int:
    """How many of the singular values (descending) are kept; see `split`."""
    if not values.numel() or float(values[0]) <= 0:
        return 0
    real = int((values > null * values[0]).sum())
    if rank is None or (isinstance(rank, float) and rank == 1):
        return real
    if isinstance(rank, int):
        return min(rank, real)
    shares = values.square().cumsum(0) / values.square().sum()
    # A hair below: the last share may come out as 1 - 1e-16.
    return min(real, int((shares < rank * (1 - 1e-12)).sum()) + 1)
