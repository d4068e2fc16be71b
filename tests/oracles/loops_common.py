"""What the loop-level oracles have in common: lists of entries, shapes, norms and the last step θ = θ0 + λΔ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import loops
import numpy as np
from loops import Deltas, Model


def flat(array: np.ndarray) -> list[float]:
    """The entries of one tensor in row-major order, as Python floats."""
    return [float(entry) for entry in array.reshape(-1)]


def shaped(values: Mapping[str, Sequence[float]], like: Model) -> dict[str, np.ndarray]:
    """Lists of entries back in the shapes of `like`, in float64."""
    return {name: np.array(values[name], dtype=np.float64).reshape(like[name].shape) for name in like}


def sign(value: float) -> int:
    """−1, 0 or 1."""
    return (value > 0) - (value < 0)


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    """⟨a, b⟩ from left to right."""
    total = 0.0
    for a, b in zip(left, right, strict=True):
        total += a * b
    return total


def norm(values: Sequence[float]) -> float:
    """‖a‖₂."""
    return math.sqrt(dot(values, values))


def shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights over their sum, or 1/N for each model."""
    if weights is None:
        return [1.0 / count] * count
    total = 0.0
    for weight in weights:
        total += weight
    return [weight / total for weight in weights]


def added(base: Model, change: Deltas, scaling_factor: float = 1.0) -> dict[str, np.ndarray]:
    """θ = θ0 + λΔ."""
    merged: dict[str, list[float]] = {}
    for name in base:
        merged[name] = []
        for start, entry in zip(flat(base[name]), change[name], strict=True):
            merged[name].append(start + scaling_factor * entry)
    return shaped(merged, base)


def summed(changes: Sequence[Deltas], weights: Sequence[float] | None = None) -> Deltas:
    """Σ wi τi, with weights of 1 where none are given."""
    given = [1.0] * len(changes) if weights is None else list(weights)
    out: Deltas = {}
    for name in changes[0]:
        out[name] = []
        for j in range(len(changes[0][name])):
            total = 0.0
            for weight, change in zip(given, changes, strict=True):
                total += weight * change[name][j]
            out[name].append(total)
    return out


def combined(
    changes: Sequence[Deltas],
    base: Model,
    consensus: str = "none",
    *,
    weights: Sequence[float] | None = None,
    zero_sum: str = "none",
    sign_weights: str = "unweighted",
) -> Deltas:
    """Sparse deltas made one: Σ wi τi (`none`), or the election of TIES-Merging (arXiv 2306.01708) without trimming.

    `sum` adds the entries with the elected sign, `mean` also divides by the sum of the weights of those that agree.
    """
    if consensus == "none":
        return summed(changes, weights)
    zeros = {name: np.zeros(base[name].shape) for name in base}
    merged = loops.ties(
        [shaped(change, base) for change in changes],
        zeros,
        scaling_factor=1.0,
        density=1.0,
        merge_func=consensus,
        zero_sum=zero_sum,
        sign_weights=sign_weights,
        weights=weights,
    )
    return {name: flat(merged[name]) for name in base}
