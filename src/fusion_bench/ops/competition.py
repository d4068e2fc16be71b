"""The balance of PCB-Merging: how entries of a task vector compete within it and with those of the other models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from fusion_bench.ops.scratch import SCRATCH
from fusion_bench.ops.sums import wide


@dataclass(frozen=True)
class Scale:
    """What is known of one task vector: its magnitudes are clipped to ``low … high``, its balances rank from `floor`
    (those at or below it count nothing) to `peak`."""

    low: float
    high: float
    floor: float = 0.0
    peak: float = 0.0


def total(deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum in float64, in scratch memory that the worker's next call overwrites."""
    out: torch.Tensor | None = None
    for delta in deltas:
        out = SCRATCH.like("all", delta, torch.float64).zero_() if out is None else out
        out.add_(wide(delta))
    if out is None:
        raise ValueError("no deltas to sum")
    return out


def balance(delta: torch.Tensor, total: torch.Tensor, scale: Scale, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""$\beta = e^{N \hat a^2} \tanh(\tau \sum_j \tau_j)$, beside the clipped magnitudes a.

    $\hat a$: a on the scale 0 … 1. Both in float64, for a balance just above the floor decides what an entry weighs;
    in scratch memory that the worker's next call overwrites. `delta` is left as it is.
    """
    clipped = SCRATCH.like("clipped", delta, torch.float64).copy_(delta).abs_().clamp_(scale.low, scale.high)
    out = SCRATCH.like("balance", delta, torch.float64)
    if scale.high > scale.low:
        torch.sub(clipped, scale.low, out=out).div_(scale.high - scale.low).square_().mul_(count)
        _exp(out)
    else:
        out.fill_(1)
    return out.mul_(_tanh(wide(delta).mul_(total))), clipped


def merge(deltas: Iterable[torch.Tensor], total: torch.Tensor, scales: Iterable[Scale], count: int) -> torch.Tensor:
    r"""$\sum_i s_i\, \mathrm{sign}(\tau_i)\, a_i / \sum_i s_i$, where $s_i$ is the balance from floor to peak on 0 … 1.

    0 where the weights sum to 0, and for models whose balances are all the same. In float64, in scratch memory.
    """
    above = SCRATCH.like("weighted", total).zero_()
    below = SCRATCH.like("weights", total).zero_()
    for delta, scale in zip(deltas, scales, strict=True):
        if scale.peak <= scale.floor:
            continue
        weight, clipped = balance(delta, total, scale, count)
        weight.clamp_(min=scale.floor).sub_(scale.floor).div_(scale.peak - scale.floor)
        above.add_(clipped.mul_(weight).mul_(wide(delta).sign_()))
        below.add_(weight)
    return above.div_(below.clamp_(min=1e-12))


# NumPy's functions take a third of the time of torch's on one thread.
def _exp(values: torch.Tensor) -> torch.Tensor:
    if values.device.type != "cpu":
        return values.exp_()
    np.exp(values.numpy(), out=values.numpy())
    return values


def _tanh(values: torch.Tensor) -> torch.Tensor:
    if values.device.type != "cpu":
        return values.tanh_()
    np.tanh(values.numpy(), out=values.numpy())
    return values
