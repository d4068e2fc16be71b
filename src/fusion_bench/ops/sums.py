"""Sums in float64, whatever the tensors hold."""

from __future__ import annotations

import torch

from fusion_bench.ops.scratch import SCRATCH


def wide(values: torch.Tensor) -> torch.Tensor:
    """`values` in float64, in scratch memory that the worker's next call overwrites."""
    # Copying first is many times faster than a sum that converts entry by entry.
    return SCRATCH.like("wide", values, torch.float64).copy_(values)


def total(values: torch.Tensor) -> float:
    """The sum of all entries."""
    return float(wide(values).sum())


def magnitude(values: torch.Tensor) -> float:
    """The sum of all magnitudes: the L1 norm."""
    return float(wide(values).abs_().sum())


def square(values: torch.Tensor) -> float:
    """The sum of all squares."""
    return float(wide(values).square_().sum())
