"""RegMean told again: Gram matrices token by token, then the normal equations of all experts at once.

Weights are out×in as in a linear layer; `transposed` names those that are stored in×out. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from loops import Model

Matrix = np.ndarray
Layer = tuple[Matrix, Matrix]
"""W (out×in) with its bias (out)."""


def gram(inputs: Sequence[Matrix], masks: Sequence[Matrix] | None = None, count_padding: bool = False) -> Matrix:
    """G = XᵀX / #tokens over batches of [tokens, in]; a mask of [tokens] is 0 at padding.

    Padding is left out of the product and out of the count, or takes part in both (`count_padding`).
    """
    width = inputs[0].shape[-1]
    out = np.zeros((width, width), dtype=np.float64)
    tokens = 0
    for b, batch in enumerate(inputs):
        for t, row in enumerate(np.asarray(batch, dtype=np.float64)):
            if masks is not None and not count_padding and not masks[b][t]:
                continue
            out = out + np.outer(row, row)
            tokens += 1
    return out / tokens if tokens else out


def reduced(matrix: Matrix, alpha: float) -> Matrix:
    """G̃: entries off the diagonal times α."""
    out = np.array(matrix, dtype=np.float64)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            if row != column:
                out[row, column] *= alpha
    return out


def solved(left: Matrix, right: Matrix) -> Matrix:
    """X with LX = R; the one of least norm among the best where L is singular."""
    if np.linalg.matrix_rank(left) == left.shape[0]:
        return np.asarray(np.linalg.solve(left, right))
    return np.asarray(np.linalg.lstsq(left, right, rcond=None)[0])


def merge(weights: Sequence[Matrix], grams: Sequence[Matrix], alpha: float = 1.0, ridge: float = 0.0) -> Matrix:
    """Wᵀ = (Σ G̃i)⁻¹ Σ G̃i Wiᵀ: RegMean, Jin et al., arXiv 2212.09849.

    `ridge` ε adds ε·tr(Σ G̃i)/d to the diagonal of the matrix on the left; 0 is the formula of the paper.
    """
    width = grams[0].shape[0]
    left = np.zeros((width, width), dtype=np.float64)
    right = np.zeros((width, weights[0].shape[0]), dtype=np.float64)
    for weight, matrix in zip(weights, grams, strict=True):
        small = reduced(matrix, alpha)
        left = left + small
        right = right + small @ np.asarray(weight, dtype=np.float64).T
    left = left + ridge * float(np.trace(left)) / width * np.eye(width)
    return solved(left, right).T


def mean(tensors: Sequence[Matrix]) -> Matrix:
    """(1/N) Σ."""
    out = np.zeros(np.shape(tensors[0]), dtype=np.float64)
    for tensor in tensors:
        out = out + np.asarray(tensor, dtype=np.float64)
    return out / len(tensors)


def merge_models(
    models: Sequence[Model],
    grams: Sequence[Mapping[str, Matrix]],
    alpha: float = 1.0,
    transposed: Collection[str] = (),
) -> dict[str, Matrix]:
    """Weights that have a Gram in every model are merged by it, all other tensors are averaged."""
    out: dict[str, Matrix] = {}
    for name in models[0]:
        tensors = [model[name] for model in models]
        if any(name not in each for each in grams):
            out[name] = mean(tensors)
        elif name in transposed:
            out[name] = merge([tensor.T for tensor in tensors], [each[name] for each in grams], alpha).T
        else:
            out[name] = merge(tensors, [each[name] for each in grams], alpha)
    return out


def objective(merged: Matrix, weights: Sequence[Matrix], inputs: Sequence[Sequence[Matrix]]) -> float:
    """Σ_i ‖X_i (W − W_i)ᵀ‖²_F / #tokens_i, which α = 1 minimises."""
    total = 0.0
    for weight, batches in zip(weights, inputs, strict=True):
        rows = np.concatenate(batches)
        error = rows @ (merged - weight).T
        total += float(np.sum(error * error)) / len(rows)
    return total


def through(layer: Layer, batches: Sequence[Matrix], act: Callable[[Matrix], Matrix]) -> list[Matrix]:
    """act(Wh + b) of every row of every batch."""
    weight, bias = layer
    return [act(np.asarray(batch, dtype=np.float64) @ weight.T + bias) for batch in batches]


def stacked(
    stacks: Sequence[Sequence[Layer]],
    inputs: Sequence[Sequence[Matrix]],
    act: Callable[[Matrix], Matrix],
    alpha: float,
    masks: Sequence[Sequence[Matrix]] | None = None,
) -> list[Layer]:
    """RegMean on a stack of layers: the Grams of model i come from its own layers."""
    hidden = [list(batches) for batches in inputs]
    merged: list[Layer] = []
    for depth in range(len(stacks[0])):
        layers = [stack[depth] for stack in stacks]
        grams = [gram(hidden[i], None if masks is None else masks[i]) for i in range(len(stacks))]
        merged.append((merge([layer[0] for layer in layers], grams, alpha), mean([layer[1] for layer in layers])))
        hidden = [through(layers[i], hidden[i], act) for i in range(len(stacks))]
    return merged


def regmean_plus_plus(
    stacks: Sequence[Sequence[Layer]],
    inputs: Sequence[Sequence[Matrix]],
    act: Callable[[Matrix], Matrix],
    alpha: float = 0.95,
    masks: Sequence[Sequence[Matrix]] | None = None,
    block: int = 1,
) -> list[Layer]:
    """RegMean++ (arXiv 2508.03121) on a stack h_l = act(W_l h_{l−1} + b_l).

    `block` consecutive layers are one layer in the sense of the paper: their inputs come from the task's data, sent
    through all *merged* blocks before, then through model i's own layers within the block. With `block` 1 the Gram
    of layer l is of the task's data behind the merged layers < l.
    """
    before = [list(batches) for batches in inputs]
    merged: list[Layer] = []
    for start in range(0, len(stacks[0]), block):
        parts = [stack[start : start + block] for stack in stacks]
        fresh = []
        inside = before
        for depth in range(len(parts[0])):
            layers = [part[depth] for part in parts]
            grams = [gram(inside[i], None if masks is None else masks[i]) for i in range(len(stacks))]
            fresh.append((merge([layer[0] for layer in layers], grams, alpha), mean([layer[1] for layer in layers])))
            inside = [through(layers[i], inside[i], act) for i in range(len(stacks))]
        for layer in fresh:
            before = [through(layer, batches, act) for batches in before]
        merged.extend(fresh)
    return merged
