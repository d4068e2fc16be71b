"""The elementary merging methods told again, one coordinate at a time.

Nothing here is fast and nothing is shared with the library: a model is a mapping from tensor names to NumPy arrays, a
delta is a list of Python floats, and every formula is a loop over coordinates with an inner loop over models. Sums are
taken in float64 and in the order of the models. Only the subtraction `model - base` happens in the precision of the
inputs, because trimming compares these differences and has to decide on the very numbers that a merge would see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Model = Mapping[str, np.ndarray]
Deltas = dict[str, list[float]]


def _flat(array: np.ndarray) -> list[float]:
    """The entries of one tensor in row-major order, as Python floats."""
    return [float(entry) for entry in array.reshape(-1)]


def _shaped(values: Mapping[str, list[float]], like: Model) -> dict[str, np.ndarray]:
    """Lists of entries back in the shapes of `like`, in float64."""
    return {name: np.array(values[name], dtype=np.float64).reshape(like[name].shape) for name in like}


def _unit(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights, or one for each model."""
    return [1.0] * count if weights is None else [float(weight) for weight in weights]


def delta(model: Model, base: Model) -> Deltas:
    """What one model changed, τ = θ − θ0 (Ilharco et al., arXiv 2212.04089), in the precision of the inputs."""
    out: Deltas = {}
    for name in base:
        ours, theirs = model[name].reshape(-1), base[name].reshape(-1)
        out[name] = [float(ours[j] - theirs[j]) for j in range(len(theirs))]
    return out


def mean(models: Sequence[Model]) -> dict[str, np.ndarray]:
    """θ = (1/N) Σ θi: model soups, Wortsman et al., arXiv 2203.05482."""
    return weighted_mean(models, None, normalize=True)


def weighted_mean(models: Sequence[Model], weights: Sequence[float] | None, normalize: bool) -> dict[str, np.ndarray]:
    """θ = Σ wi θi, divided by Σ wi where `normalize`: Matena and Raffel, arXiv 2111.09832."""
    given = _unit(weights, len(models))
    total = 0.0
    for weight in given:
        total += weight
    divisor = total if normalize else 1.0
    merged: dict[str, list[float]] = {}
    for name in models[0]:
        columns = [_flat(model[name]) for model in models]
        merged[name] = []
        for j in range(len(columns[0])):
            entry = 0.0
            for weight, column in zip(given, columns, strict=True):
                entry += weight * column[j]
            merged[name].append(entry / divisor)
    return _shaped(merged, models[0])


def task_arithmetic(models: Sequence[Model], base: Model, scaling_factor: float) -> dict[str, np.ndarray]:
    """θ = θ0 + λ Σ τi: task arithmetic, Ilharco et al., arXiv 2212.04089."""
    changes = [delta(model, base) for model in models]
    merged: dict[str, list[float]] = {}
    for name in base:
        merged[name] = []
        for j, start in enumerate(_flat(base[name])):
            entry = 0.0
            for change in changes:
                entry += change[name][j]
            merged[name].append(start + scaling_factor * entry)
    return _shaped(merged, base)


def kept(values: Sequence[float], density: float, count: str = "exact", at_least: int = 0) -> list[bool]:
    """Which entries the trimming of TIES-Merging keeps (Yadav et al., arXiv 2306.01708, step "trim").

    `exact`: the int(density·d) largest magnitudes, of equal ones those that come first. `authors`: every entry that
    is not below the (d − int(density·d))-th smallest magnitude. All entries stay where int(density·d) = d.
    """
    d = len(values)
    k = max(at_least, int(density * d))
    if k >= d:
        return [True] * d
    by_magnitude = sorted(range(d), key=lambda j: (-abs(values[j]), j))
    if count == "exact":
        chosen = set(by_magnitude[:k])
        return [j in chosen for j in range(d)]
    # The (d − k)-th smallest magnitude is the (k + 1)-th largest.
    threshold = abs(values[by_magnitude[k]])
    return [abs(value) >= threshold for value in values]


def trimmed(change: Deltas, density: float, scope: str, count: str = "exact", at_least: int = 0) -> Deltas:
    """One trimmed task vector, "trim" of TIES-Merging (arXiv 2306.01708).

    `model`: the tensors in the order of their names make one vector. `tensor`: every tensor by itself.
    """
    groups = [sorted(change)] if scope == "model" else [[name] for name in change]
    out: Deltas = {name: [] for name in change}
    for group in groups:
        whole: list[float] = []
        for name in group:
            whole.extend(change[name])
        keep = kept(whole, density, count, at_least)
        position = 0
        for name in group:
            for value in change[name]:
                out[name].append(value if keep[position] else 0.0)
                position += 1
    return out


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def ties(
    models: Sequence[Model],
    base: Model,
    *,
    scaling_factor: float,
    density: float,
    merge_func: str = "sum",
    scope: str = "model",
    count: str = "exact",
    zero_sum: str = "none",
    sign_weights: str = "unweighted",
    normalize_by: str = "weights",
    weights: Sequence[float] | None = None,
) -> dict[str, np.ndarray]:
    """TIES-Merging with every switch: trim, elect signs, merge those that agree. Yadav et al., arXiv 2306.01708.

    Weights multiply the trimmed deltas that are merged; they also vote where `sign_weights` is `weighted`, and then a
    model agrees if its weighted entry has the elected sign. `majority` (the code of the authors) replaces an undecided
    sign by the sign of most coordinates of the whole model; if there is no such sign either, negative entries merge,
    but the largest entry is multiplied by that sign of 0 (as a run of their functions shows).
    """
    given = _unit(weights, len(models))
    changes = [trimmed(delta(model, base), density, scope, count) for model in models]

    def vote(i: int, name: str, j: int) -> float:
        entry = changes[i][name][j]
        return given[i] * entry if sign_weights == "weighted" else entry

    elected: dict[str, list[int]] = {}
    balance = 0
    for name in base:
        elected[name] = []
        for j in range(base[name].size):
            total = 0.0
            for i in range(len(models)):
                total += vote(i, name, j)
            elected[name].append(_sign(total))
            balance += _sign(total)
    instead = {"none": 0, "positive": 1, "majority": 1 if balance > 0 else -1}[zero_sum]

    merged: dict[str, list[float]] = {}
    for name in base:
        merged[name] = []
        for j, start in enumerate(_flat(base[name])):
            sign = elected[name][j] or instead
            total, largest, weight, agreeing = 0.0, 0.0, 0.0, 0
            for i in range(len(models)):
                if sign != 0 and _sign(vote(i, name, j)) == sign:
                    entry = given[i] * changes[i][name][j]
                    total += entry
                    largest = max(largest, abs(entry))
                    weight += given[i]
                    agreeing += 1
            if merge_func == "sum":
                change = total
            elif merge_func == "max":
                change = (elected[name][j] or _sign(balance) if zero_sum == "majority" else sign) * largest
            elif normalize_by == "count":
                change = total / agreeing if agreeing else 0.0
            else:
                change = total / weight if weight != 0.0 else total
            merged[name].append(start + scaling_factor * change)
    return _shaped(merged, base)


def ties_mergekit(
    models: Sequence[Model], base: Model, *, scaling_factor: float, density: float, weights: Sequence[float] | None
) -> dict[str, np.ndarray]:
    """TIES-Merging (arXiv 2306.01708) as mergekit 0.1.5 reads it.

    Per tensor the max(1, int(density·n)) largest entries; signs from the weighted deltas, a total of 0 counts as
    positive; the weighted sum of those that agree over the sum of their weights (0 → 1), then λ.
    """
    given = _unit(weights, len(models))
    changes = [trimmed(delta(model, base), density, "tensor", at_least=1) for model in models]
    merged: dict[str, list[float]] = {}
    for name in base:
        merged[name] = []
        for j, start in enumerate(_flat(base[name])):
            entries = [given[i] * changes[i][name][j] for i in range(len(models))]
            total = 0.0
            for entry in entries:
                total += entry
            sign = 1 if total >= 0 else -1
            numerator, divisor = 0.0, 0.0
            for i, entry in enumerate(entries):
                if _sign(entry) == sign:
                    numerator += entry
                    divisor += given[i]
            merged[name].append(start + scaling_factor * (numerator / (divisor if divisor != 0.0 else 1.0)))
    return _shaped(merged, base)


def ties_peft(
    models: Sequence[Model], base: Model, *, scaling_factor: float, density: float, weights: Sequence[float] | None
) -> dict[str, np.ndarray]:
    """TIES-Merging (arXiv 2306.01708) as PEFT 0.21.2 reads it.

    Per tensor the int(density·n) largest entries; signs from the unweighted deltas, a total of 0 counts as positive;
    the weighted sum of those that agree over their number (at least 1), then λ.
    """
    given = _unit(weights, len(models))
    changes = [trimmed(delta(model, base), density, "tensor") for model in models]
    merged: dict[str, list[float]] = {}
    for name in base:
        merged[name] = []
        for j, start in enumerate(_flat(base[name])):
            total = 0.0
            for change in changes:
                total += change[name][j]
            sign = 1 if total >= 0 else -1
            numerator, agreeing = 0.0, 0
            for i, change in enumerate(changes):
                if _sign(change[name][j]) == sign:
                    numerator += given[i] * change[name][j]
                    agreeing += 1
            merged[name].append(start + scaling_factor * (numerator / max(agreeing, 1)))
    return _shaped(merged, base)


def matmul(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product of two matrices by the definition, in float64."""
    out = np.zeros((left.shape[0], right.shape[1]), dtype=np.float64)
    for row in range(left.shape[0]):
        for column in range(right.shape[1]):
            total = 0.0
            for inner in range(left.shape[1]):
                total += float(left[row, inner]) * float(right[inner, column])
            out[row, column] = total
    return out


def lora_delta(up: np.ndarray, down: np.ndarray, alpha: float, rank: int) -> np.ndarray:
    """ΔW = s·B·A with s = α/r: low-rank adaptation, Hu et al., arXiv 2106.09685."""
    return (alpha / rank) * matmul(up, down)
