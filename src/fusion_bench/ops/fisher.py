"""Means of tensors weighted entry by entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

FloorMode = Literal["add", "max"]
"""How a weight is kept above 0: by adding the floor, or by raising what lies below it."""


def weighted_mean(
    tensors: Iterable[torch.Tensor],
    weights: Iterable[torch.Tensor],
    factors: Sequence[float],
    floor: float,
    mode: FloorMode = "add",
) -> torch.Tensor:
    r"""$\sum_i \lambda_i F_i \theta_i / \sum_i \lambda_i F_i$ with $\lambda$ = `factors` and F = `weights`, floored.

    An entry whose weights are all 0 is the plain mean. Overwrites both; each is used before the next is asked for.
    """
    above: torch.Tensor | None = None
    below = plain = torch.empty(0)
    for tensor, weight, factor in zip(tensors, weights, factors, strict=True):
        weight = weight.to(tensor.device, tensor.dtype)
        weight = (weight.add_(floor) if mode == "add" else weight.clamp_(min=floor)).mul_(factor)
        if above is None:
            plain = tensor.clone() if floor == 0 else plain
            above, below = tensor.mul(weight), weight.clone()
        else:
            plain = plain.add_(tensor) if floor == 0 else plain
            below.add_(weight)
            above.add_(weight.mul_(tensor))
    if above is None:
        raise ValueError("no tensors to average")
    if floor > 0:
        return above.div_(below)
    return torch.where(below > 0, above.div_(below), plain.div_(len(factors)))
