"""Sums of tensors in one pass and one buffer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fusion_bench.ops.scratch import SCRATCH


def total(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum, in the order given. Each tensor is used before the next is asked for; at least one is needed.

    The result lives in scratch memory and is overwritten by the worker's next sum.
    """
    out: torch.Tensor | None = None
    for tensor in tensors:
        out = SCRATCH.like("sum", tensor).copy_(tensor) if out is None else out.add_(tensor)
    if out is None:
        raise ValueError("no tensors to sum")
    return out


def mean(tensors: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """The sum divided by `count`: one rounding more than the sum, and exact for one tensor."""
    out = total(tensors)
    return out if count == 1 else out.div_(count)


def weighted_sum(tensors: Iterable[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The sum of ``weight * tensor``, in the order given; the tensors are overwritten."""
    return total(
        tensor if weight == 1 else tensor.mul_(weight) for tensor, weight in zip(tensors, weights, strict=True)
    )


def shifted(base: torch.Tensor, delta: torch.Tensor, factor: float) -> torch.Tensor:
    """``base + factor * delta``, overwriting `delta`; `base` itself, bit for bit, where the factor is 0."""
    if factor == 0:
        return delta.copy_(base)
    return (delta if factor == 1 else delta.mul_(factor)).add_(base)
