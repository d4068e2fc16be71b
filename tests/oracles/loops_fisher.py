"""Fisher merging told again: per-sample gradients derived by hand for two tiny networks, then a loop over coordinates.

A network is a function from parameters to the logits of one input, with its chain rule beside it. All sums are taken
in float64 in the order of the samples, of the classes, of the models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from loops import Model
from loops_common import flat, shaped

Params = Mapping[str, np.ndarray]
Gradient = dict[str, np.ndarray]


class Network(NamedTuple):
    """`logits(params, x)` of one input, and `backward(params, x, d)` = Σ_k d_k ∂logit_k/∂θ for every parameter."""

    logits: Callable[[Params, np.ndarray], np.ndarray]
    backward: Callable[[Params, np.ndarray, np.ndarray], Gradient]


def linear_logits(params: Params, x: np.ndarray) -> np.ndarray:
    """Wx + b of `weight` (classes × in) and, if it is there, `bias`."""
    out = np.asarray(params["weight"], dtype=np.float64) @ np.asarray(x, dtype=np.float64)
    return out + params["bias"] if "bias" in params else out


def linear_backward(params: Params, x: np.ndarray, d: np.ndarray) -> Gradient:
    """∂/∂W = d xᵀ, ∂/∂b = d."""
    known = {"weight": np.outer(d, x), "bias": np.array(d, dtype=np.float64)}
    return {name: known[name] for name in params}


def tanh_logits(params: Params, x: np.ndarray) -> np.ndarray:
    """V tanh(Wx + b) + c of `hidden.weight`, `hidden.bias`, `head.weight`, `head.bias`."""
    hidden = np.tanh(params["hidden.weight"] @ np.asarray(x, dtype=np.float64) + params["hidden.bias"])
    return np.asarray(params["head.weight"] @ hidden + params["head.bias"])


def tanh_backward(params: Params, x: np.ndarray, d: np.ndarray) -> Gradient:
    """∂/∂V = d hᵀ, ∂/∂c = d, ∂/∂b = (Vᵀd)⊙(1 − h²), ∂/∂W = (∂/∂b) xᵀ with h = tanh(Wx + b)."""
    hidden = np.tanh(params["hidden.weight"] @ np.asarray(x, dtype=np.float64) + params["hidden.bias"])
    inner = (params["head.weight"].T @ d) * (1.0 - hidden * hidden)
    known = {
        "hidden.weight": np.outer(inner, x),
        "hidden.bias": inner,
        "head.weight": np.outer(d, hidden),
        "head.bias": np.array(d, dtype=np.float64),
    }
    return {name: known[name] for name in params}


LINEAR = Network(linear_logits, linear_backward)
TANH = Network(tanh_logits, tanh_backward)


def softmax(logits: Sequence[float] | np.ndarray) -> np.ndarray:
    """e^(z_c − max z) / Σ."""
    values = [float(entry) for entry in logits]
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    total = 0.0
    for power in powers:
        total += power
    return np.array([power / total for power in powers])


def log_probability_gradient(network: Network, params: Params, x: np.ndarray, chosen: int) -> Gradient:
    """∂ log p(c|x)/∂θ: the logits receive e_c − p."""
    upstream = -softmax(network.logits(params, x))
    upstream[chosen] += 1.0
    return network.backward(params, x, upstream)


def zeros(params: Params) -> Gradient:
    return {name: np.zeros(np.shape(params[name]), dtype=np.float64) for name in params}


def added_squares(total: Gradient, gradient: Gradient, weight: float) -> Gradient:
    """total + weight·gradient², entry by entry."""
    return {name: total[name] + weight * gradient[name] * gradient[name] for name in total}


def true_fisher(network: Network, params: Params, inputs: Sequence[np.ndarray]) -> Gradient:
    """F = (1/n) Σx Σc p(c|x) (∂ log p(c|x))², exact over the classes: Matena and Raffel, arXiv 2111.09832."""
    out = zeros(params)
    for x in inputs:
        for chosen, probability in enumerate(softmax(network.logits(params, x))):
            gradient = log_probability_gradient(network, params, x, chosen)
            out = added_squares(out, gradient, float(probability) / len(inputs))
    return out


def sampled_fisher(network: Network, params: Params, inputs: Sequence[np.ndarray], drawn: Sequence[int]) -> Gradient:
    """F = (1/n) Σx (∂ log p(c|x))² for the class c that was drawn from p(·|x), one per input."""
    out = zeros(params)
    for x, chosen in zip(inputs, drawn, strict=True):
        gradient = log_probability_gradient(network, params, x, chosen)
        out = added_squares(out, gradient, 1.0 / len(inputs))
    return out


def empirical_fisher(network: Network, params: Params, inputs: Sequence[np.ndarray], gold: Sequence[int]) -> Gradient:
    """F = (1/n) Σx (∂ log p(gold|x))²."""
    return sampled_fisher(network, params, inputs, gold)


def fusionbench_fisher(
    network: Network, params: Params, inputs: Sequence[np.ndarray], batch_size: int = 32
) -> Gradient:
    """F = (1/n) Σ_b g_b² with g_b = Σ_{x∈b} Σc √p_c ∂ log p_c: no Fisher, it depends on the batches.

    The square root is a constant for the derivative; n counts samples, not batches; the last batch may be short.
    """
    out = zeros(params)
    for start in range(0, len(inputs), batch_size):
        summed = zeros(params)
        for x in inputs[start : start + batch_size]:
            for chosen, probability in enumerate(softmax(network.logits(params, x))):
                gradient = log_probability_gradient(network, params, x, chosen)
                summed = {name: summed[name] + math.sqrt(probability) * gradient[name] for name in summed}
        out = added_squares(out, summed, 1.0 / len(inputs))
    return out


def fisher_norm(fisher: Params, excluded: Collection[str] = ()) -> float:
    """ν = ‖F‖₂ over all parameters that are merged by Fisher, before any floor."""
    total = 0.0
    for name in fisher:
        if name not in excluded:
            for entry in flat(np.asarray(fisher[name])):
                total += entry * entry
    return math.sqrt(total)


def model_weights(
    fisher: Sequence[Params],
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    excluded: Collection[str] = (),
) -> list[float]:
    """λi ∝ wi/(νi + 1e-6) with Σλ = 1; without `normalize` the given weights, or ones."""
    given = [1.0] * len(fisher) if weights is None else [float(weight) for weight in weights]
    if not normalize:
        return given
    scaled = [weight / (fisher_norm(each, excluded) + 1e-6) for weight, each in zip(given, fisher, strict=True)]
    total = 0.0
    for entry in scaled:
        total += entry
    return [entry / total for entry in scaled]


def merge(
    theta: Sequence[Model],
    fisher: Sequence[Params],
    weights: Sequence[float] | None = None,
    floor: float = 1e-6,
    normalize: bool = True,
    *,
    floor_mode: str = "add",
    excluded: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """θ_j = Σ λi F_ij θ_ij / Σ λi F_ij: Matena and Raffel, arXiv 2111.09832.

    The floor goes into F before λ multiplies it (golden vector G6): `add` F + floor, `max` max(F, floor). So where
    every F is 0 the result is the mean weighted with λ; it is the plain mean if the floor is 0 as well, and for
    tensors that are excluded or have no Fisher.
    """
    shares = model_weights(fisher, weights, normalize, excluded)
    merged: dict[str, list[float]] = {}
    for name in theta[0]:
        columns = [flat(np.asarray(model[name], dtype=np.float64)) for model in theta]
        plain = name in excluded or any(name not in each for each in fisher)
        merged[name] = []
        for j in range(len(columns[0])):
            above = below = mean = 0.0
            for i, column in enumerate(columns):
                mean += column[j] / len(columns)
                if plain:
                    continue
                entry = flat(np.asarray(fisher[i][name], dtype=np.float64))[j]
                entry = entry + floor if floor_mode == "add" else max(entry, floor)
                above += shares[i] * entry * column[j]
                below += shares[i] * entry
            merged[name].append(above / below if below > 0.0 else mean)
    return shaped(merged, theta[0])
