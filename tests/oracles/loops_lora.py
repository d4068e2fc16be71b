"""Low-rank adapters and (IA)³ vectors: their algebra, Core Space and KnOTS, written from the formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from loops import matmul

Matrix = np.ndarray
Merge = Callable[[list[Matrix]], Matrix]
Gates = Mapping[str, np.ndarray]


class Adapter(NamedTuple):
    """ΔW = s·B·A with A: rank×in and B: out×rank."""

    up: Matrix
    down: Matrix
    scaling: float


class Core(NamedTuple):
    """Orthonormal columns U, orthonormal rows V, and the small matrices between them."""

    left: Matrix
    right: Matrix
    cores: list[Matrix]


def scaling(alpha: float, rank: int, rslora: bool = False) -> float:
    """α/r (Hu et al., arXiv 2106.09685), or α/√r (rank-stabilised, Kalajdzievski, arXiv 2312.03732)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def dense(adapter: Adapter) -> Matrix:
    """ΔW = s·B·A: low-rank adaptation, arXiv 2106.09685."""
    return adapter.scaling * matmul(adapter.up, adapter.down)


def dora(adapter: Adapter, weight: Matrix, magnitude: Matrix) -> Matrix:
    """m⊙(W0+ΔW)/‖W0+ΔW‖ with a norm per output row: the adapted weight of DoRA, Liu et al., arXiv 2402.09353."""
    adapted = weight + dense(adapter)
    out = np.zeros(adapted.shape)
    for row in range(adapted.shape[0]):
        length = math.sqrt(sum(float(entry) ** 2 for entry in adapted[row]))
        for column in range(adapted.shape[1]):
            out[row, column] = float(magnitude.reshape(-1)[row]) * adapted[row, column] / length
    return out


def weighted_sum(adapters: Sequence[Adapter], weights: Sequence[float]) -> Matrix:
    """Σ wi·si·BiAi, dense and exact; ranks may differ."""
    out = np.zeros((adapters[0].up.shape[0], adapters[0].down.shape[1]))
    for weight, adapter in zip(weights, adapters, strict=True):
        out = out + weight * dense(adapter)
    return out


def concatenated(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """The same sum as one adapter of rank Σr: A = [A1; …], B = [w1s1B1, …], s = 1."""
    up = np.concatenate(
        [w * adapter.scaling * adapter.up for w, adapter in zip(weights, adapters, strict=True)], axis=1
    )
    return Adapter(up, np.concatenate([adapter.down for adapter in adapters], axis=0), 1.0)


def factor_average(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """(Σ √|wi·si|·Bi)(Σ ±√|wi·si|·Ai) with the sign of wi·si on A, as PEFT's "linear": cross terms, not Σ wBA."""
    up, down = np.zeros(adapters[0].up.shape), np.zeros(adapters[0].down.shape)
    for weight, adapter in zip(weights, adapters, strict=True):
        product = weight * adapter.scaling
        root = math.sqrt(abs(product))
        up = up + root * adapter.up
        down = down + math.copysign(root, product) * adapter.down
    return Adapter(up, down, 1.0)


def column_basis(matrix: Matrix, null: float = 1e-6) -> Matrix:
    """Orthonormal columns that span those of a matrix, without directions below null·σ_max."""
    left, values, _ = np.linalg.svd(np.asarray(matrix, dtype=np.float64), full_matrices=False)
    keep = sum(1 for value in values if value > 0.0 and value >= null * values[0])
    return left[:, :keep]


def core_project(adapters: Sequence[Adapter]) -> Core:
    """M_i = s_i(UᵀB_i)(A_iVᵀ): Core Space, arXiv 2509.17786.

    U has orthonormal columns for those of [s1B1 … sNBN], V orthonormal rows for those of [A1; …; AN].
    """
    left = column_basis(np.concatenate([adapter.scaling * adapter.up for adapter in adapters], axis=1))
    right = column_basis(np.concatenate([adapter.down for adapter in adapters], axis=0).T).T
    cores = [
        adapter.scaling * matmul(matmul(left.T, adapter.up), matmul(adapter.down, right.T)) for adapter in adapters
    ]
    return Core(left, right, cores)


def core_back(core: Core, merged: Matrix) -> Matrix:
    """ΔW = U·M·V."""
    return matmul(matmul(core.left, merged), core.right)


def core_space(adapters: Sequence[Adapter], merge: Merge) -> Matrix:
    """Any method on the small matrices of Core Space (arXiv 2509.17786), taken back to the dense shape."""
    core = core_project(adapters)
    return core_back(core, merge(core.cores))


def knots_parts(deltas: Sequence[Matrix], null: float = 1e-5) -> tuple[Matrix, list[Matrix]]:
    """U and the ΣV_iᵀ of [ΔW1|…|ΔWN] = UΣ[V1ᵀ|…|VNᵀ] without σ ≤ 1e-5: KnOTS, Stoica et al., arXiv 2410.19735."""
    left, values, right = np.linalg.svd(np.concatenate(deltas, axis=1).astype(np.float64), full_matrices=False)
    keep = sum(1 for value in values if value > null)
    scaled = np.zeros((keep, right.shape[1]))
    for r in range(keep):
        scaled[r] = values[r] * right[r]
    width = deltas[0].shape[1]
    return left[:, :keep], [scaled[:, i * width : (i + 1) * width] for i in range(len(deltas))]


def knots(deltas: Sequence[Matrix], merge: Merge) -> Matrix:
    """U·merge({ΣV_iᵀ}): KnOTS, arXiv 2410.19735."""
    left, aligned = knots_parts(deltas)
    return matmul(left, merge(aligned))


def _gate_names(adapters: Sequence[Gates]) -> list[str]:
    """Every module that any adapter has, in the order of first appearance."""
    names: list[str] = []
    for adapter in adapters:
        for name in adapter:
            if name not in names:
                names.append(name)
    return names


def ia3_arithmetic(
    adapters: Sequence[Gates], weights: Sequence[float], scaling_factor: float = 1.0
) -> dict[str, np.ndarray]:
    """l = 1 + λ Σ wi(li − 1) around the neutral value 1: (IA)³, Liu et al., arXiv 2205.05638.

    A module that an adapter lacks is 1 there.
    """
    out: dict[str, np.ndarray] = {}
    for name in _gate_names(adapters):
        like = next(adapter[name] for adapter in adapters if name in adapter)
        merged: list[float] = []
        for j in range(like.size):
            total = 0.0
            for weight, adapter in zip(weights, adapters, strict=True):
                if name in adapter:
                    total += weight * (float(adapter[name].reshape(-1)[j]) - 1.0)
            merged.append(1.0 + scaling_factor * total)
        out[name] = np.array(merged).reshape(like.shape)
    return out


def ia3_geometric(adapters: Sequence[Gates], weights: Sequence[float] | None = None) -> dict[str, np.ndarray]:
    """l = Π li^wi, wi = 1/N unless given; a module that an adapter lacks is 1 there, entries must be positive."""
    given = [1.0 / len(adapters)] * len(adapters) if weights is None else list(weights)
    out: dict[str, np.ndarray] = {}
    for name in _gate_names(adapters):
        like = next(adapter[name] for adapter in adapters if name in adapter)
        merged: list[float] = []
        for j in range(like.size):
            product = 1.0
            for weight, adapter in zip(given, adapters, strict=True):
                if name in adapter:
                    entry = float(adapter[name].reshape(-1)[j])
                    if entry <= 0.0:
                        raise ValueError(f"no geometric mean of {entry} in {name}")
                    product *= entry**weight
            merged.append(product)
        out[name] = np.array(merged).reshape(like.shape)
    return out
