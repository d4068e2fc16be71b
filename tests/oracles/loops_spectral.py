"""Spectral merging on lists of matrices τi = θi − θ0, written from the formulas with matrix products in float64.

Directions with σ < 1e-6·σ_max are null directions: their singular vectors are arbitrary, so they are dropped before
anything is orthogonalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
from loops import Model, delta
from loops_common import shaped

Matrix = np.ndarray
Merge = Callable[[list[Matrix]], Matrix]
NULL = 1e-6


def total(matrices: Sequence[Matrix]) -> Matrix:
    """Σ τi in the order of the experts."""
    out = np.zeros(matrices[0].shape, dtype=np.float64)
    for matrix in matrices:
        out = out + matrix
    return out


def mean(matrices: Sequence[Matrix]) -> Matrix:
    """(1/N) Σ τi."""
    return total(matrices) / len(matrices)


def components(
    matrix: Matrix, count: int | None = None, reference: float | None = None, null: float = NULL
) -> tuple[Matrix, Matrix, Matrix]:
    """U, σ, Vᵀ of the `count` leading components with σ ≥ null·σ_max and σ > 0; σ_max may come from elsewhere.

    A negative `null` keeps every component.
    """
    left, values, right = np.linalg.svd(np.asarray(matrix, dtype=np.float64), full_matrices=False)
    largest = float(values[0]) if reference is None else reference
    keep = 0
    for value in values[: len(values) if count is None else count]:
        if null < 0.0 or (value > 0.0 and value >= null * largest):
            keep += 1
    return left[:, :keep], values[:keep], right[:keep]


def rebuilt(left: Matrix, values: Matrix, right: Matrix) -> Matrix:
    """Σ_r σ_r u_r v_rᵀ, component by component."""
    out = np.zeros((left.shape[0], right.shape[1]), dtype=np.float64)
    for r in range(len(values)):
        out = out + values[r] * np.outer(left[:, r], right[r])
    return out


def polar(matrix: Matrix, null: float = NULL) -> Matrix:
    """The polar factor PQᵀ of X = PSQᵀ on the support of X."""
    if 0 in matrix.shape:
        return np.zeros(matrix.shape)
    left, _, right = components(matrix, null=null)
    return np.asarray(left @ right)


def spectral_norm(matrix: Matrix) -> float:
    return float(np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)[0])


def tsvm(deltas: Sequence[Matrix], count: int | None = None) -> Matrix:
    """U⊥ diag(σ) V⊥ of the floor(min(out, in)/N) leading components of every expert: TSV-M, arXiv 2412.00081.

    Less than one component per expert: the mean. Null directions are those of an expert against its own σ_max.
    """
    k = min(deltas[0].shape) // len(deltas) if count is None else count
    if k < 1:
        return mean(deltas)
    parts = [components(matrix, k) for matrix in deltas]
    left = polar(np.concatenate([part[0] for part in parts], axis=1))
    right = polar(np.concatenate([part[2] for part in parts], axis=0))
    return rebuilt(left, np.concatenate([part[1] for part in parts]), right)


def cut(rank: str) -> float:
    """Where null directions begin: `numerical`, or nowhere (`full`)."""
    return {"numerical": NULL, "full": -1.0}[rank]


def iso_c(deltas: Sequence[Matrix], rank: str = "numerical") -> Matrix:
    """mean(σ)·UVᵀ of Σ τi = UΣVᵀ: Iso-C, Marczak et al., arXiv 2502.04959.

    `numerical`: kept directions only. `full`: all min(out, in) directions and values.
    """
    left, values, right = components(total(deltas), null=cut(rank))
    if len(values) == 0:
        return np.zeros(deltas[0].shape)
    return np.asarray((sum(values) / len(values)) * (left @ right))


def cts_split(rank: int, count: int, fraction: float) -> int:
    """s, the number of task directions: round((r − int(f·r))/N)·N with halves to even, as G19 requires.

    Rounding up can exceed r where N > r; then there is no room, and the multiple of N below r (0) is taken.
    """
    s = round((rank - int(fraction * rank)) / count) * count
    return s if s <= rank else rank // count * count


def iso_cts(deltas: Sequence[Matrix], fraction: float = 0.8, rank: str = "numerical") -> Matrix:
    """A common space and one of every task, made orthogonal, with one singular value: Iso-CTS, arXiv 2502.04959.

    U_c are the c = r − s leading left vectors of Σ τi; every task gives the s/N leading components of τi − U_cU_cᵀτi.
    A task part is null where it is below 1e-6 of σ_max(τi): measured against itself, a residual of mere rounding
    would count.
    """
    directions, null = min(deltas[0].shape), cut(rank)
    s = cts_split(directions, len(deltas), fraction)
    common = components(total(deltas), directions - s, null=null)
    parts = []
    for matrix in deltas:
        rest = matrix - common[0] @ (common[0].T @ matrix)
        parts.append(components(rest, s // len(deltas), spectral_norm(matrix), null))
    parts.append(common)
    values = np.concatenate([part[1] for part in parts])
    if len(values) == 0:
        return np.zeros(deltas[0].shape)
    left = polar(np.concatenate([part[0] for part in parts], axis=1), null)
    right = polar(np.concatenate([part[2] for part in parts], axis=0), null)
    return np.asarray((sum(values) / len(values)) * (left @ right))


def interference(deltas: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
    """C = Σ τiᵀτi/‖τi‖² (in×in) and D = Σ τiτiᵀτi/‖τi‖² (out×in); experts with ‖τi‖² < 1e-12 are left out."""
    c = np.zeros((deltas[0].shape[1], deltas[0].shape[1]))
    d = np.zeros(deltas[0].shape)
    for matrix in deltas:
        energy = float((matrix * matrix).sum())
        if energy >= 1e-12:
            c = c + matrix.T @ matrix / energy
            d = d + matrix @ (matrix.T @ matrix) / energy
    return c, d


def wudi_loss(merged: Matrix, deltas: Sequence[Matrix]) -> float:
    """Σ ‖(Δ−τi)τiᵀ‖²_F/‖τi‖²_F: WUDI, Cheng et al., arXiv 2503.08099."""
    out = 0.0
    for matrix in deltas:
        product = (merged - matrix) @ matrix.T
        out += float((product * product).sum()) / float((matrix * matrix).sum())
    return out


def wudi_gradient(merged: Matrix, deltas: Sequence[Matrix]) -> Matrix:
    """2 Σ (Δ−τi)τiᵀτi/‖τi‖²_F = 2(ΔC − D), expert by expert."""
    out = np.zeros(merged.shape)
    for matrix in deltas:
        out = out + 2.0 * ((merged - matrix) @ matrix.T) @ matrix / float((matrix * matrix).sum())
    return out


def wudi_minimum(deltas: Sequence[Matrix]) -> Matrix:
    """The minimiser of least norm of the loss of WUDI (arXiv 2503.08099), without forming C.

    With X the stacked τi/‖τi‖ and H = [τiτiᵀ/‖τi‖ …] we have C = XᵀX and D = HX, so Δ = D·C⁺ = H·P·S⁻¹·Qᵀ for
    X = PSQᵀ.
    """
    rows, products = [], []
    for matrix in deltas:
        length = math.sqrt(float((matrix * matrix).sum()))
        if length * length >= 1e-12:
            rows.append(matrix / length)
            products.append(matrix @ matrix.T / length)
    if not rows:
        return mean(deltas)
    left, values, right = components(np.concatenate(rows, axis=0))
    return np.asarray(np.concatenate(products, axis=1) @ left @ np.diag(1.0 / values) @ right)


def spectrum(deltas: Sequence[Matrix]) -> list[float]:
    """The eigenvalues of C, falling, not below 1e-8."""
    values = np.linalg.eigvalsh(interference(deltas)[0])[::-1]
    return [max(float(value), 1e-8) for value in values]


def aswudi_count(values: Sequence[float]) -> int:
    """K = ceil((Σ√ℓ)²/Σℓ), the effective number of directions of ASWUDI."""
    return math.ceil(sum(math.sqrt(value) for value in values) ** 2 / sum(values))


def closed_form(deltas: Sequence[Matrix], factors: Sequence[float], init: str = "sum") -> Matrix:
    """Δ = θ̄ − θ̄·V·diag(f)·Vᵀ + D·V·diag(f/ℓ)·Vᵀ with C = V·diag(ℓ)·Vᵀ, ℓ falling and not below 1e-8.

    θ̄ = Σ τi (`sum`), their mean (`mean`) or `zero`. All experts with ‖τi‖² < 1e-12: the mean.
    """
    if all(float((matrix * matrix).sum()) < 1e-12 for matrix in deltas):
        return mean(deltas)
    c, d = interference(deltas)
    values, vectors = np.linalg.eigh(c)
    start = {"sum": total(deltas), "mean": mean(deltas), "zero": np.zeros(deltas[0].shape)}[init]
    out = start.copy()
    for place, factor in enumerate(factors):
        column = len(values) - 1 - place
        v = vectors[:, column]
        out = out + factor * np.outer(d @ v / max(float(values[column]), 1e-8) - start @ v, v)
    return out


def swudi(deltas: Sequence[Matrix], *, t: float, r: float, init: str = "sum") -> Matrix:
    """SWUDI: f = 1 − exp(−ℓt) on the ceil(r·in) leading directions of C, 0 on the others."""
    values = spectrum(deltas)
    count = math.ceil(r * len(values))
    return closed_form(deltas, [1.0 - math.exp(-value * t) for value in values[:count]], init)


def aswudi(deltas: Sequence[Matrix], *, init: str = "sum") -> Matrix:
    """ASWUDI: f = 1 on the K leading directions of C, 0 on the others."""
    return closed_form(deltas, [1.0] * aswudi_count(spectrum(deltas)), init)


def svc_factors(merged: Matrix, deltas: Sequence[Matrix], alpha: float) -> list[float]:
    """N/Σ_i max(α, s_ri), s_ri = ⟨u_rᵀΔ, u_rᵀτi⟩/‖u_rᵀτi‖² (α where that is below 1e-12): SVC, arXiv 2602.05536."""
    left, _, _ = components(merged)
    out: list[float] = []
    for r in range(left.shape[1]):
        ours = left[:, r] @ merged
        divisor = 0.0
        for matrix in deltas:
            theirs = left[:, r] @ matrix
            energy = float(theirs @ theirs)
            divisor += max(alpha, float(ours @ theirs) / energy) if energy >= 1e-12 else alpha
        out.append(len(deltas) / divisor)
    return out


def svc(merged: Matrix, deltas: Sequence[Matrix], alpha: float) -> Matrix:
    """The merged delta with its singular values times these factors: SVC, arXiv 2602.05536."""
    left, values, right = components(merged)
    return rebuilt(left, values * np.array(svc_factors(merged, deltas, alpha)), right)


def cart(deltas: Sequence[Matrix], *, k: int, scaling_factor: float) -> Matrix:
    """τ̄ + λ Σ SVD_k(τi − τ̄), as a delta: CART, Choi et al., arXiv 2412.12153 (centring removes θ0)."""
    centre = mean(deltas)
    return centre + scaling_factor * total([rebuilt(*components(matrix - centre, k)) for matrix in deltas])


def on_matrices(
    models: Sequence[Model], base: Model, merge: Merge, matrices: Collection[str], scaling_factor: float = 1.0
) -> dict[str, np.ndarray]:
    """θ0 + λΔ with Δ from `merge` for the named matrices and the mean of τi for every other tensor.

    λ scales both, as in θ = θ0 + λΔ; for CART give its λ to `merge` and 1 here.
    """
    changes = [shaped(delta(model, base), base) for model in models]
    out: dict[str, np.ndarray] = {}
    for name in base:
        each = [change[name] for change in changes]
        merged = merge(each) if name in matrices else mean(each)
        out[name] = base[name].astype(np.float64) + scaling_factor * merged
    return out
