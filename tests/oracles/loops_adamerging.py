"""AdaMerging told again: entropies in loops, gradients by central differences, Adam one coefficient at a time.

Coefficients are a mapping from tensor names to one value per expert; task-wise they are the same list for every name
and share one gradient. The derivative of the loss by a coefficient is the five-point formula
(f(−2h) − 8f(−h) + 8f(h) − f(2h)) / 12h with h = 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from loops import Model, delta, trimmed
from loops_common import flat, shaped, sign
from loops_fisher import softmax

Coefficients = dict[str, list[float]]
Logits = Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray]
STEP = 1e-3
INSIDE_LOG = 1e-8


def entropy_of(logits: np.ndarray, labels: Sequence[int] | None = None) -> float:
    """−Σ p log(p + 1e-8) of one row; with `labels`, p is the softmax over these logits alone."""
    chosen = flat(np.asarray(logits)) if labels is None else [float(logits[label]) for label in labels]
    total = 0.0
    for p in softmax(chosen):
        total -= float(p) * math.log(float(p) + INSIDE_LOG)
    return total


def mean_entropy(logits: np.ndarray, labels: Sequence[int] | None = None) -> float:
    """The mean over rows of the entropy of each."""
    total = 0.0
    for row in logits:
        total += entropy_of(row, labels)
    return total / len(logits)


def entropy_of_mean(logits: np.ndarray, labels: Sequence[int] | None = None) -> float:
    """The entropy of the mean row of logits."""
    mean = np.zeros(np.shape(logits)[1], dtype=np.float64)
    for row in logits:
        mean = mean + np.asarray(row, dtype=np.float64) / len(logits)
    return entropy_of(mean, labels)


OBJECTIVES = {"mean_entropy": mean_entropy, "entropy_of_mean": entropy_of_mean}


def task_vectors(experts: Sequence[Model], base: Model) -> list[dict[str, np.ndarray]]:
    """τi = θi − θ0."""
    return [shaped(delta(expert, base), base) for expert in experts]


def plus_plus(experts: Sequence[Model], base: Model, density: float = 0.2) -> list[dict[str, np.ndarray]]:
    """The task vectors of AdaMerging++: trimmed as in TIES over each whole model, then only the elected signs.

    int(density·d) entries stay per expert, keys sorted, of equal magnitudes the lower flat index. The elected sign is
    that of the sum of the trimmed task vectors; where the sum is 0 no entry stays.
    """
    changes = [trimmed(delta(expert, base), density, "model") for expert in experts]
    out: list[dict[str, list[float]]] = [{name: [] for name in base} for _ in experts]
    for name in base:
        for j in range(len(changes[0][name])):
            total = 0.0
            for change in changes:
                total += change[name][j]
            for i, change in enumerate(changes):
                value = change[name][j]
                out[i][name].append(value if value != 0.0 and sign(value) == sign(total) else 0.0)
    return [shaped(each, base) for each in out]


def merged(
    base: Model, vectors: Sequence[Mapping[str, np.ndarray]], coefficients: Mapping[str, Sequence[float]]
) -> dict[str, np.ndarray]:
    """θ = θ0 + Σ λi τi with the λ of each tensor: Yang et al., arXiv 2310.02575."""
    out: dict[str, np.ndarray] = {}
    for name in base:
        tensor = np.array(base[name], dtype=np.float64)
        for scale, vector in zip(coefficients[name], vectors, strict=True):
            tensor = tensor + scale * vector[name]
        out[name] = tensor
    return out


def loss(
    params: Mapping[str, np.ndarray],
    networks: Sequence[Logits],
    batches: Sequence[Sequence[np.ndarray]],
    objective: str = "mean_entropy",
    labels: Sequence[Sequence[int] | None] | None = None,
) -> float:
    """Σ over tasks of the objective on one batch of each; every task has its own way from parameters to logits."""
    total = 0.0
    for task, (network, batch) in enumerate(zip(networks, batches, strict=True)):
        rows = np.array([network(params, x) for x in batch])
        total += OBJECTIVES[objective](rows, None if labels is None else labels[task])
    return total


def slope(function: Callable[[float], float], step: float = STEP) -> float:
    """f'(0) by the five-point formula."""
    return (function(-2 * step) - 8 * function(-step) + 8 * function(step) - function(2 * step)) / (12 * step)


def gradient(
    function: Callable[[Coefficients], float], coefficients: Coefficients, layer_wise: bool, step: float = STEP
) -> Coefficients:
    """∂f/∂λ, one number per tensor and expert; task-wise every tensor of an expert moves at once."""
    names = list(coefficients)
    groups = [[name] for name in names] if layer_wise else [names]
    out: Coefficients = {name: [0.0] * len(coefficients[name]) for name in names}
    for group in groups:
        for i in range(len(coefficients[names[0]])):

            def nudged(by: float, group: Sequence[str] = group, i: int = i) -> float:
                moved = {name: list(values) for name, values in coefficients.items()}
                for name in group:
                    moved[name][i] += by
                return function(moved)

            derivative = slope(nudged, step)
            for name in group:
                out[name][i] = derivative
    return out


def effective(raw: Coefficients, constraint: str = "none") -> Coefficients:
    """What multiplies τ: the raw values, those clamped to [0, 1] (`clamp`), or their softmax over the experts."""
    if constraint == "clamp":
        return {name: [min(max(value, 0.0), 1.0) for value in values] for name, values in raw.items()}
    if constraint == "softmax":
        return {name: [float(p) for p in softmax(values)] for name, values in raw.items()}
    return {name: list(values) for name, values in raw.items()}


def pulled_back(raw: Coefficients, outer: Coefficients, constraint: str = "none") -> Coefficients:
    """∂f/∂raw from ∂f/∂effective: clamping passes it on within [0, 1], both ends included."""
    out: Coefficients = {}
    for name, values in raw.items():
        if constraint == "clamp":
            out[name] = [g if 0.0 <= value <= 1.0 else 0.0 for value, g in zip(values, outer[name], strict=True)]
        elif constraint == "softmax":
            shares = softmax(values)
            level = sum(float(p) * g for p, g in zip(shares, outer[name], strict=True))
            out[name] = [float(p) * (g - level) for p, g in zip(shares, outer[name], strict=True)]
        else:
            out[name] = list(outer[name])
    return out


class Adam:
    """m ← β1 m + (1−β1) g, v ← β2 v + (1−β2) g², x ← x − lr · m̂ / (√v̂ + ε), with m̂ = m/(1−β1ᵗ), v̂ = v/(1−β2ᵗ)."""

    def __init__(self, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.steps = 0
        self.first: Coefficients = {}
        self.second: Coefficients = {}

    def step(self, values: Coefficients, gradients: Coefficients) -> Coefficients:
        """The values after one step."""
        self.steps += 1
        out: Coefficients = {}
        for name in values:
            self.first.setdefault(name, [0.0] * len(values[name]))
            self.second.setdefault(name, [0.0] * len(values[name]))
            out[name] = []
            for i, (value, g) in enumerate(zip(values[name], gradients[name], strict=True)):
                self.first[name][i] = self.beta1 * self.first[name][i] + (1.0 - self.beta1) * g
                self.second[name][i] = self.beta2 * self.second[name][i] + (1.0 - self.beta2) * g * g
                m = self.first[name][i] / (1.0 - self.beta1**self.steps)
                v = self.second[name][i] / (1.0 - self.beta2**self.steps)
                out[name].append(value - self.lr * m / (math.sqrt(v) + self.eps))
        return out


def trajectory(
    base: Model,
    vectors: Sequence[Mapping[str, np.ndarray]],
    networks: Sequence[Logits],
    stream: Sequence[Sequence[Sequence[np.ndarray]]],
    *,
    layer_wise: bool,
    init: float = 0.3,
    lr: float = 1e-3,
    objective: str = "mean_entropy",
    labels: Sequence[Sequence[int] | None] | None = None,
    constraint: str = "none",
    clamp_after: bool = False,
) -> list[Coefficients]:
    """The raw coefficients before the first step and after every step; `stream[step][task]` is one batch.

    `constraint` acts between the raw values and the merge. `clamp_after` is the other reading of clamping: the raw
    values themselves are put back into [0, 1] after every step.
    """
    raw: Coefficients = {name: [init] * len(vectors) for name in base}
    optimizer = Adam(lr)
    out = [raw]
    for batches in stream:

        def value(used: Coefficients, batches: Sequence[Sequence[np.ndarray]] = batches) -> float:
            return loss(merged(base, vectors, used), networks, batches, objective, labels)

        slopes = gradient(value, effective(raw, constraint), layer_wise)
        raw = optimizer.step(raw, pulled_back(raw, slopes, constraint))
        if clamp_after:
            raw = effective(raw, "clamp")
        out.append(raw)
    return out
