"""MaTS told again: (Σ C_i) W = Σ C_i W_i by conjugate gradients that know C_i only through products.

W is in×out, the transpose of what a linear layer stores. `init` and the number of steps decide the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Matrix = np.ndarray
Product = Callable[[Matrix], Matrix]


def inner(left: Matrix, right: Matrix) -> float:
    """⟨A, B⟩ over all entries, from the first to the last."""
    total = 0.0
    for a, b in zip(left.reshape(-1), right.reshape(-1), strict=True):
        total += float(a) * float(b)
    return total


def conjugate_gradient(
    product: Product,
    right: Matrix,
    start: Matrix,
    iterations: int,
    tolerance: float = 1e-5,
    diagonal: Matrix | None = None,
) -> tuple[Matrix, list[float]]:
    """X with CX = B from X0, and ‖B − CX‖ before the first and after every step.

    Stops at ‖r‖ ≤ tolerance·‖B‖, after `iterations` steps, or at pᵀCp ≤ 0, which leaves X as it is. `diagonal` of C
    is the Jacobi preconditioner: r is divided by it where it is positive.
    """
    x = np.array(start, dtype=np.float64)
    residual = right - product(x)
    enough = tolerance * math.sqrt(inner(right, right))
    norms = [math.sqrt(inner(residual, residual))]

    def preconditioned(r: Matrix) -> Matrix:
        return r if diagonal is None else r / np.where(diagonal > 0.0, diagonal, 1.0)

    z = preconditioned(residual)
    direction = z
    level = inner(residual, z)
    for _ in range(iterations):
        if norms[-1] <= enough:
            break
        image = product(direction)
        curvature = inner(direction, image)
        if curvature <= 0.0:
            break
        step = level / curvature
        x = x + step * direction
        residual = residual - step * image
        norms.append(math.sqrt(inner(residual, residual)))
        z = preconditioned(residual)
        lower = inner(residual, z)
        direction = z + lower / level * direction
        level = lower
    return x, norms


def summed(products: Sequence[Product]) -> Product:
    """W ↦ Σ C_i W."""

    def product(x: Matrix) -> Matrix:
        out = np.zeros(x.shape, dtype=np.float64)
        for each in products:
            out = out + each(x)
        return out

    return product


def right_side(products: Sequence[Product], weights: Sequence[Matrix]) -> Matrix:
    """Σ C_i W_i."""
    out = np.zeros(weights[0].shape, dtype=np.float64)
    for product, weight in zip(products, weights, strict=True):
        out = out + product(np.asarray(weight, dtype=np.float64))
    return out


def solve(
    weights: Sequence[Matrix],
    products: Sequence[Product],
    start: Matrix,
    iterations: int,
    tolerance: float = 1e-5,
    diagonal: Matrix | None = None,
) -> tuple[Matrix, list[float]]:
    """The merged W of MaTS (Tam et al., arXiv 2312.04339), and the residual norms of its steps."""
    right = right_side(products, weights)
    return conjugate_gradient(summed(products), right, start, iterations, tolerance, diagonal)


def initial(
    weights: Sequence[Matrix], init: str = "mean", base: Matrix | None = None, scaling_factor: float = 0.3
) -> Matrix:
    """X0: `mean`, `zeros`, `pretrained`, or `task_arithmetic` W0 + λ Σ (W_i − W0)."""
    if init == "zeros":
        return np.zeros(weights[0].shape, dtype=np.float64)
    if init == "mean":
        return right_side([identity()] * len(weights), weights) / len(weights)
    assert base is not None
    out = np.array(base, dtype=np.float64)
    if init == "task_arithmetic":
        for weight in weights:
            out = out + scaling_factor * (weight - base)
    return out


def identity() -> Product:
    """W ↦ W."""
    return lambda w: w


def diagonal_fisher(fisher: Matrix, floor: float = 1e-8) -> Product:
    """W ↦ max(F, floor)⊙W."""
    bounded = np.maximum(np.asarray(fisher, dtype=np.float64), floor)
    return lambda w: bounded * w


def gram(a: Matrix) -> Product:
    """W ↦ AW with A = XᵀX/#tokens (in×in)."""
    return lambda w: a @ w


def kfac(a: Matrix, b: Matrix) -> Product:
    """W ↦ AWB with B = the Gram of the gradients at the layer's output (out×out)."""
    return lambda w: a @ w @ b


def ia3_block(fisher: Matrix) -> Product:
    """l ↦ Fl with the whole outer-product Fisher of one (IA)^3 vector; l is a vector or a column."""
    return lambda vector: fisher @ vector


def outer_gram(rows: Sequence[Matrix], masks: Sequence[Matrix] | None = None) -> Matrix:
    """(1/#rows) Σ g gᵀ over batches of [tokens, width]: A from inputs, B from output gradients, F of (IA)^3.

    Rows whose mask is 0 are neither added nor counted.
    """
    width = rows[0].shape[-1]
    out = np.zeros((width, width), dtype=np.float64)
    count = 0
    for i, batch in enumerate(rows):
        for t, row in enumerate(batch):
            if masks is None or masks[i][t]:
                out = out + np.outer(row, row)
                count += 1
    return out / count if count else out


def closed_diagonal(weights: Sequence[Matrix], fishers: Sequence[Matrix], floor: float = 1e-8) -> Matrix:
    """Σ max(F_i, floor)⊙W_i / Σ max(F_i, floor)."""
    above = np.zeros(weights[0].shape, dtype=np.float64)
    below = np.zeros(weights[0].shape, dtype=np.float64)
    for weight, fisher in zip(weights, fishers, strict=True):
        bounded = np.maximum(np.asarray(fisher, dtype=np.float64), floor)
        above = above + bounded * weight
        below = below + bounded
    return above / below


def closed_left(weights: Sequence[Matrix], matrices: Sequence[Matrix]) -> Matrix:
    """(Σ A_i)⁻¹ Σ A_i W_i: `gram` on matrices, `ia3_block` on vectors."""
    left = np.zeros(matrices[0].shape, dtype=np.float64)
    for matrix in matrices:
        left = left + matrix
    return np.asarray(np.linalg.solve(left, right_side([gram(matrix) for matrix in matrices], weights)))


def dense_kfac(weights: Sequence[Matrix], a: Sequence[Matrix], b: Sequence[Matrix]) -> Matrix:
    """The same system written out: Σ (A_i ⊗ B_iᵀ) vec(W) with W flattened row by row."""
    rows, columns = weights[0].shape
    dense = np.zeros((rows * columns, rows * columns), dtype=np.float64)
    for left, right in zip(a, b, strict=True):
        for i in range(rows):
            for j in range(columns):
                for k in range(rows):
                    for m in range(columns):
                        dense[i * columns + j, k * columns + m] += left[i, k] * right[m, j]
    products = [kfac(left, right) for left, right in zip(a, b, strict=True)]
    return np.asarray(np.linalg.solve(dense, right_side(products, weights).reshape(-1)).reshape(rows, columns))


def kfac_diagonal(a: Sequence[Matrix], b: Sequence[Matrix]) -> Matrix:
    """The diagonal of W ↦ Σ A_i W B_i in the shape of W, for the Jacobi preconditioner."""
    out = np.zeros((a[0].shape[0], b[0].shape[0]), dtype=np.float64)
    for left, right in zip(a, b, strict=True):
        out = out + np.outer(np.diag(left), np.diag(right))
    return out
