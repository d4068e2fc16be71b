"""Merging methods that drop, mask or select entries of task vectors, told again one coordinate at a time.

Nothing is random here: the masks of DARE and the uniform draws of DELLA come in by model index and tensor name. Of two
equal magnitudes (or variances) the one that comes first counts as the larger one, as in the trimming of TIES-Merging.
`consensus` is `none` (plain sum), `sum` or `mean` (the election of TIES-Merging, see `loops_common.combined`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from loops import Deltas, Model, delta
from loops_common import added, combined, flat, sign


def largest_first(values: Sequence[float]) -> list[int]:
    """Positions by falling value; of equal values the earlier one comes first."""
    return sorted(range(len(values)), key=lambda j: (-values[j], j))


def l1_ratio(whole: Sequence[float], sparse: Sequence[float]) -> float:
    """‖τ‖₁ / ‖m⊙τ‖₁ of one tensor; 1 where nothing is left."""
    before, after = 0.0, 0.0
    for entry in whole:
        before += abs(entry)
    for entry in sparse:
        after += abs(entry)
    return before / after if after > 0.0 else 1.0


def dare_delta(change: Deltas, mask: Model, *, density: float, rescale_mode: str = "probability") -> Deltas:
    """m⊙τ/(1−p) with 1−p = density: DARE, Yu et al., arXiv 2311.03099.

    `rescale_mode`: `probability`; `l1`, the ratio of the L1 norms per tensor (mergekit); `none`. Tensors without a mask
    pass untouched.
    """
    out: Deltas = {}
    for name, values in change.items():
        if name not in mask:
            out[name] = list(values)
            continue
        kept = [value if keep else 0.0 for value, keep in zip(values, mask[name].reshape(-1), strict=True)]
        factor = {"probability": 1.0 / density, "l1": l1_ratio(values, kept), "none": 1.0}[rescale_mode]
        out[name] = [factor * entry for entry in kept]
    return out


def dare(
    models: Sequence[Model],
    base: Model,
    *,
    masks: Sequence[Model],
    density: float,
    scaling_factor: float = 1.0,
    rescale_mode: str = "probability",
    consensus: str = "none",
    **election: Any,
) -> dict[str, np.ndarray]:
    """DARE (arXiv 2311.03099) before the plain sum of task arithmetic or before the election of TIES-Merging."""
    sparse = [
        dare_delta(delta(model, base), mask, density=density, rescale_mode=rescale_mode)
        for model, mask in zip(models, masks, strict=True)
    ]
    return added(base, combined(sparse, base, consensus, **election), scaling_factor)


def keep_probabilities(row: Sequence[float], density: float, epsilon: float) -> list[float]:
    """density − ε + 2ε(r−1)/(n−1) with the rank r = 1…n of the magnitude, r = n the largest: DELLA, arXiv 2406.11617.

    A row with one entry has the probability `density`.
    """
    n = len(row)
    if n == 1:
        return [density]
    out = [0.0] * n
    for place, j in enumerate(largest_first([abs(entry) for entry in row])):
        rank = n - place
        out[j] = density - epsilon + 2.0 * epsilon * (rank - 1) / (n - 1)
    return out


def della_delta(
    change: Deltas,
    base: Model,
    draws: Model,
    *,
    density: float,
    epsilon: float,
    rescale_mode: str = "probability",
    rows: str = "leading",
) -> Deltas:
    """One task vector after DELLA's pruning (Deep et al., arXiv 2406.11617): an entry stays if its draw is below p.

    `rescale_mode`: `probability` divides every entry by its own keep-probability (so that the mean stays τ), `l1` and
    `none` as in DARE. Rows of tensors with more than two axes: `leading`, one row per first index; `last`, one row per
    line along the last axis. The specification says "row-wise" and no more.
    """
    out: Deltas = {}
    for name, values in change.items():
        shape = base[name].shape
        width = len(values)
        if len(shape) > 1:
            width = shape[-1] if rows == "last" else len(values) // shape[0]
        chance: list[float] = []
        for start in range(0, len(values), width):
            chance.extend(keep_probabilities(values[start : start + width], density, epsilon))
        uniform = flat(draws[name])
        kept = [value if uniform[j] < chance[j] else 0.0 for j, value in enumerate(values)]
        if rescale_mode == "probability":
            out[name] = [entry / chance[j] for j, entry in enumerate(kept)]
        else:
            factor = l1_ratio(values, kept) if rescale_mode == "l1" else 1.0
            out[name] = [factor * entry for entry in kept]
    return out


def della(
    models: Sequence[Model],
    base: Model,
    *,
    draws: Sequence[Model],
    density: float,
    epsilon: float,
    scaling_factor: float = 1.0,
    rescale_mode: str = "probability",
    consensus: str = "mean",
    rows: str = "leading",
    **election: Any,
) -> dict[str, np.ndarray]:
    """DELLA (arXiv 2406.11617): pruned deltas, then the normalised election (`mean`) or the plain sum (`none`)."""
    pruned = [
        della_delta(
            delta(model, base), base, draw, density=density, epsilon=epsilon, rescale_mode=rescale_mode, rows=rows
        )
        for model, draw in zip(models, draws, strict=True)
    ]
    return added(base, combined(pruned, base, consensus, **election), scaling_factor)


def breadcrumbs_delta(change: Deltas, *, density: float, gamma: float) -> Deltas:
    """Without the largest and the small magnitudes: Model Breadcrumbs, Davari and Belilovsky, arXiv 2312.06795.

    Per tensor the int(γ·n) largest go, and of the others the int(density·n) largest stay. Where fewer than that are
    left, fewer outliers go. density ≥ 1 changes nothing.
    """
    out: Deltas = {}
    for name, values in change.items():
        n = len(values)
        if density >= 1.0:
            out[name] = list(values)
            continue
        keep = int(density * n)
        outliers = min(int(gamma * n), n - keep)
        chosen = set(largest_first([abs(value) for value in values])[outliers : outliers + keep])
        out[name] = [value if j in chosen else 0.0 for j, value in enumerate(values)]
    return out


def breadcrumbs(
    models: Sequence[Model],
    base: Model,
    *,
    density: float,
    gamma: float = 0.01,
    scaling_factor: float = 1.0,
    consensus: str = "none",
    **election: Any,
) -> dict[str, np.ndarray]:
    """Model Breadcrumbs (arXiv 2312.06795), then the plain sum or the election of TIES-Merging."""
    sparse = [breadcrumbs_delta(delta(model, base), density=density, gamma=gamma) for model in models]
    return added(base, combined(sparse, base, consensus, **election), scaling_factor)


def sce_select(entries: Sequence[Sequence[float]], select_topk: float) -> list[list[float]]:
    """Step "select" of SCE for one tensor: int(topk·m) positions of largest population variance stay.

    m is the number of positions where the experts are not all equal; there the variance is exactly 0, whatever
    rounding would make of it.
    """
    count, n = len(entries), len(entries[0])
    if select_topk >= 1.0:
        return [list(row) for row in entries]
    variance: list[float] = []
    for j in range(n):
        column = [row[j] for row in entries]
        mean = sum(column) / count
        differ = any(value != column[0] for value in column)
        variance.append(sum((value - mean) ** 2 for value in column) / count if differ else 0.0)
    varying = sum(1 for value in variance if value > 0.0)
    chosen = set(largest_first(variance)[: int(select_topk * varying)])
    return [[value if j in chosen else 0.0 for j, value in enumerate(row)] for row in entries]


def sce_weights(entries: Sequence[Sequence[float]]) -> list[float]:
    """Step "calculate" of SCE for one tensor: wi = mean(τ̂i²) over their sum; equal weights if all entries are 0."""
    squares = [sum(value * value for value in row) / len(row) for row in entries]
    total = sum(squares)
    return [square / total for square in squares] if total > 0.0 else [1.0 / len(entries)] * len(entries)


def sce(
    models: Sequence[Model], base: Model, *, select_topk: float = 1.0, scaling_factor: float = 1.0
) -> dict[str, np.ndarray]:
    """Select, calculate, erase, tensor by tensor: SCE of FuseChat-3, Wan et al., arXiv 2408.07990.

    The elected sign is that of the unweighted total (0 counts as +); a zero entry agrees with no sign.
    """
    changes = [delta(model, base) for model in models]
    merged: Deltas = {}
    for name in base:
        entries = sce_select([change[name] for change in changes], select_topk)
        weights = sce_weights(entries)
        merged[name] = []
        for j in range(base[name].size):
            total = 0.0
            for row in entries:
                total += row[j]
            elected = 1 if total >= 0.0 else -1
            numerator, divisor = 0.0, 0.0
            for row, weight in zip(entries, weights, strict=True):
                if sign(row[j]) == elected:
                    numerator += weight * row[j]
                    divisor += weight
            merged[name].append(numerator / divisor if divisor > 0.0 else 0.0)
    return added(base, merged, scaling_factor)


def norm01(values: Sequence[float]) -> list[float]:
    """(x − min)/(max − min); 0 everywhere for a constant vector."""
    low, high = min(values), max(values)
    if high == low:
        return [0.0] * len(values)
    return [(value - low) / (high - low) for value in values]


def clipped(values: Sequence[float], low: float, high: float) -> list[float]:
    """Values between two order statistics of their own: those at int(d·low) and int(d·(1−high) − 1)."""
    ordered = sorted(values)
    d = len(ordered)
    floor, ceiling = ordered[int(d * low)], ordered[max(0, int(d * (1.0 - high) - 1.0))]
    return [min(max(value, floor), ceiling) for value in values]


def pcb_scales(rows: Sequence[Sequence[float]], ratio: float) -> tuple[list[list[float]], list[list[float]]]:
    """The scales s and the clipped task vectors sign(τ)·a of PCB-Merging, Du et al., arXiv 2410.02396.

    "Clipped at its 1e-4 tails" is read as the order statistics int(1e-4·d) and int(d·(1−1e-4) − 1), and "raised to its
    (1−ratio) quantile" as a floor at the order statistic int(d·(1−ratio)); so the largest of ten magnitudes is clipped
    to the second and the floor itself has the scale 0. The sum in `inter` is taken over unclipped vectors.
    """
    n, d = len(rows), len(rows[0])
    totals = []
    for j in range(d):
        total = 0.0
        for row in rows:
            total += row[j]
        totals.append(total)
    scales, bounded = [], []
    for row in rows:
        magnitudes = clipped([abs(value) for value in row], 1e-4, 1e-4)
        intra = [math.exp(n * share * share) for share in norm01(magnitudes)]
        balance = [intra[j] * math.tanh(row[j] * totals[j]) for j in range(d)]
        floor = sorted(balance)[min(d - 1, int(d * (1.0 - ratio)))]
        scales.append(norm01([max(value, floor) for value in balance]))
        bounded.append([sign(value) * magnitude for value, magnitude in zip(row, magnitudes, strict=True)])
    return scales, bounded


def pcb(models: Sequence[Model], base: Model, *, ratio: float, scaling_factor: float = 1.0) -> dict[str, np.ndarray]:
    """Δ = Σ s·sign(τ)a / max(Σ s, 1e-12) over the whole model as one vector: PCB-Merging, arXiv 2410.02396."""
    changes = [delta(model, base) for model in models]
    names = sorted(base)
    scales, bounded = pcb_scales([[entry for name in names for entry in change[name]] for change in changes], ratio)
    merged: list[float] = []
    for j in range(len(scales[0])):
        numerator, divisor = 0.0, 0.0
        for scale, row in zip(scales, bounded, strict=True):
            numerator += scale[j] * row[j]
            divisor += scale[j]
        merged.append(numerator / max(divisor, 1e-12))
    out: Deltas = {}
    position = 0
    for name in names:
        out[name] = merged[position : position + base[name].size]
        position += base[name].size
    return added(base, out, scaling_factor)
