"""Interpolation on spheres and Model Stock, told again one coordinate at a time.

A tensor is a list of entries; where a method works on rows or columns, it is several such lists. Tensors with more than
two axes are matrices of their first index against all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from loops import Model, delta
from loops_common import dot, flat, norm, shaped, shares

Vector = list[float]
TINY = 1e-8


def unit(values: Sequence[float]) -> Vector:
    """a/‖a‖; zeros stay."""
    length = norm(values)
    return [value / length for value in values] if length > 0.0 else list(values)


def blend(weights: Sequence[float], rows: Sequence[Sequence[float]]) -> Vector:
    """Σ wi ai."""
    out: Vector = []
    for j in range(len(rows[0])):
        total = 0.0
        for weight, row in zip(weights, rows, strict=True):
            total += weight * row[j]
        out.append(total)
    return out


def pieces(array: np.ndarray, by: str) -> list[Vector]:
    """A tensor as one vector (`flat`), as its rows or as its columns; with fewer than two axes it is always one."""
    if by == "flat" or array.ndim < 2:
        return [flat(array)]
    matrix = array.reshape(array.shape[0], -1)
    return [flat(row) for row in (matrix if by == "row" else matrix.T)]


def assembled(parts: Sequence[Vector], like: np.ndarray, by: str) -> np.ndarray:
    """The inverse of `pieces`."""
    if by == "flat" or like.ndim < 2:
        return np.array(parts[0], dtype=np.float64).reshape(like.shape)
    matrix = np.array(parts, dtype=np.float64)
    return (matrix if by == "row" else matrix.T).reshape(like.shape)


def per_piece(
    models: Sequence[Model], base: Model | None, by: str, merge: Callable[[list[Vector]], Vector]
) -> dict[str, np.ndarray]:
    """`merge` on every piece of every tensor: of the models, or of their task vectors where there is a base."""
    sources = [model if base is None else shaped(delta(model, base), base) for model in models]
    out: dict[str, np.ndarray] = {}
    for name in models[0] if base is None else base:
        like = models[0][name]
        columns = zip(*(pieces(source[name], by) for source in sources), strict=True)
        out[name] = assembled([merge(list(column)) for column in columns], like, by)
        if base is not None:
            out[name] = base[name].astype(np.float64) + out[name]
    return out


def slerp_vectors(a: Sequence[float], b: Sequence[float], t: float, threshold: float = 0.9995) -> Vector:
    """sin((1−t)φ)/sinφ·a + sin(tφ)/sinφ·b on the raw vectors, φ between their directions: Shoemake 1985.

    Linear where a norm is 0 or |cos φ| > threshold, so also for opposite vectors.
    """
    cosine = dot(unit(a), unit(b))
    if norm(a) == 0.0 or norm(b) == 0.0 or abs(cosine) > threshold:
        return blend([1.0 - t, t], [a, b])
    angle = math.acos(cosine)
    return blend([math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)], [a, b])


def slerp(models: Sequence[Model], *, t: float, threshold: float = 0.9995) -> dict[str, np.ndarray]:
    """SLERP of two models, tensor by tensor, on the weights themselves."""
    first, second = models
    return per_piece([first, second], None, "flat", lambda pair: slerp_vectors(pair[0], pair[1], t, threshold))


def nuslerp(
    models: Sequence[Model],
    base: Model | None = None,
    *,
    weights: Sequence[float],
    by: str = "flat",
    threshold: float = 0.9995,
) -> dict[str, np.ndarray]:
    """SLERP with t = w1/(w0+w1): mergekit's NuSLERP, on task vectors if there is a base; `by` flat, row or column."""
    first, second = models
    t = weights[1] / (weights[0] + weights[1])
    return per_piece([first, second], base, by, lambda pair: slerp_vectors(pair[0], pair[1], t, threshold))


def mlerp_vectors(rows: Sequence[Sequence[float]], norm_mode: str = "max") -> Vector:
    """θ̄/‖θ̄‖·n* with the largest norm or the mean of the norms: MLERP, Kim et al., arXiv 2312.01026."""
    mean = blend([1.0 / len(rows)] * len(rows), rows)
    lengths = [norm(row) for row in rows]
    target = max(lengths) if norm_mode == "max" else sum(lengths) / len(lengths)
    return [target * entry for entry in unit(mean)]


def mlerp(models: Sequence[Model], *, scope: str = "model", norm_mode: str = "max") -> dict[str, np.ndarray]:
    """MLERP (arXiv 2312.01026): `model`, one norm over all tensors; `tensor`, one for each. A zero mean stays zero."""
    if scope == "tensor":
        return per_piece(models, None, "flat", lambda rows: mlerp_vectors(rows, norm_mode))
    names = sorted(models[0])
    whole = mlerp_vectors([[entry for name in names for entry in flat(model[name])] for model in models], norm_mode)
    out: dict[str, list[float]] = {}
    position = 0
    for name in names:
        out[name] = whole[position : position + models[0][name].size]
        position += models[0][name].size
    return shaped(out, models[0])


def exponential(point: Sequence[float], tangent: Sequence[float]) -> Vector:
    """cos‖v‖·m + sin‖v‖·v/‖v‖ on the unit sphere."""
    length = norm(tangent)
    if length < TINY:
        return list(point)
    return blend([math.cos(length), math.sin(length) / length], [point, tangent])


def logarithm(point: Sequence[float], other: Sequence[float]) -> Vector:
    """The tangent vector at m that leads to u: the part of u orthogonal to m, with the length of the angle."""
    cosine = min(1.0, max(-1.0, dot(other, point)))
    across = blend([1.0, -cosine], [other, point])
    length = norm(across)
    if length < TINY:
        return [0.0] * len(point)
    return [math.acos(cosine) / length * entry for entry in across]


def middle(units: Sequence[Sequence[float]], weights: Sequence[float]) -> Vector | None:
    """The normalised weighted mean of directions; none where they cancel."""
    mean = blend(weights, units)
    return unit(mean) if norm(mean) >= TINY else None


def undecided(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> Vector:
    """Where directions cancel: the linear blend of two vectors, an error for more."""
    if len(rows) > 2:
        raise ValueError("the directions cancel")
    return blend(weights, rows)


def multislerp_vectors(rows: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> Vector:
    """Multi-SLERP of mergekit: project the directions u on the tangent space at their mean, average, map back.

    m = mean/‖mean‖ of Σ wi ui, v = Σ wi (ui − ⟨ui, m⟩m), result exp_m(v)·Σ wi‖ai‖ with Σ wi = 1. A zero vector is the
    direction 0 and the norm 0.
    """
    given = shares(weights, len(rows))
    units = [unit(row) for row in rows]
    point = middle(units, given)
    if point is None:
        return undecided(rows, given)
    tangents = [blend([1.0, -dot(direction, point)], [direction, point]) for direction in units]
    length = sum(weight * norm(row) for weight, row in zip(given, rows, strict=True))
    return [length * entry for entry in exponential(point, blend(given, tangents))]


def multislerp(
    models: Sequence[Model], base: Model | None = None, *, weights: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """Multi-SLERP tensor by tensor; of task vectors, added to the base, where there is one."""
    return per_piece(models, base, "flat", lambda rows: multislerp_vectors(rows, weights))


def karcher_vectors(
    rows: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    *,
    iterations: int = 10,
    tolerance: float = 1e-5,
) -> Vector:
    """The mean on the sphere by m ← exp_m(Σ wi log_m(ui)), times Σ wi‖ai‖: Karcher mean, arXiv 2603.04972.

    It starts at the normalised weighted mean and stops, without that last step, where the step is shorter than the
    tolerance. Zero vectors have no direction: they count in the mean norm alone.
    """
    given = shares(weights, len(rows))
    directed = [(weight, unit(row)) for weight, row in zip(given, rows, strict=True) if norm(row) > 0.0]
    if not directed:
        return [0.0] * len(rows[0])
    rest = shares([weight for weight, _ in directed], len(directed))
    units = [direction for _, direction in directed]
    point = middle(units, rest)
    if point is None:
        return undecided(rows, given)
    for _ in range(iterations):
        step = blend(rest, [logarithm(point, direction) for direction in units])
        if norm(step) < tolerance:
            break
        point = unit(exponential(point, step))
    length = sum(weight * norm(row) for weight, row in zip(given, rows, strict=True))
    return [length * entry for entry in point]


def karcher(
    models: Sequence[Model], *, weights: Sequence[float] | None = None, iterations: int = 10, tolerance: float = 1e-5
) -> dict[str, np.ndarray]:
    """The Karcher mean (arXiv 2603.04972) of every tensor."""
    return per_piece(
        models, None, "flat", lambda rows: karcher_vectors(rows, weights, iterations=iterations, tolerance=tolerance)
    )


def pairwise_cosine(rows: Sequence[Sequence[float]], floor: float = 1e-6) -> float:
    """The mean cosine over all pairs, with ‖a‖‖b‖ not below `floor`."""
    total, pairs = 0.0, 0
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            total += dot(rows[i], rows[j]) / max(norm(rows[i]) * norm(rows[j]), floor)
            pairs += 1
    return total / pairs


def stock_ratio(cosine: float, count: int) -> float:
    """t = N·c/(1 + (N−1)c): Model Stock, Jang et al., arXiv 2403.19522; 0 where the denominator vanishes."""
    denominator = 1.0 + (count - 1) * cosine
    return count * cosine / denominator if abs(denominator) >= TINY else 0.0


def stock_vectors(rows: Sequence[Vector]) -> Vector:
    """t·mean(τi)."""
    t = stock_ratio(pairwise_cosine(rows), len(rows))
    return [t * entry for entry in blend([1.0 / len(rows)] * len(rows), rows)]


def model_stock(models: Sequence[Model], base: Model, *, filter_wise: bool = False) -> dict[str, np.ndarray]:
    """θ = t·mean(θi) + (1−t)θ0 = θ0 + t·mean(τi) per tensor, or per row: Model Stock, arXiv 2403.19522.

    With `filter_wise` a row is all that has one first index; a tensor with one axis stays one row.
    """
    return per_piece(models, base, "row" if filter_wise else "flat", stock_vectors)
