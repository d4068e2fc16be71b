"""Selecting and masking entries of task vectors, in one pass over the models where that is possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fusion_bench.ops.scratch import SCRATCH


def largest(deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """The entry of largest magnitude over the models, of equal ones the later; overwrites each delta.

    Finite entries only. The result lives in scratch memory and is overwritten by the worker's next call.
    """
    chosen: torch.Tensor | None = None
    for delta in deltas:
        if chosen is None:
            chosen = SCRATCH.like("chosen", delta).copy_(delta)
            reached = torch.abs(delta, out=SCRATCH.like("reached", delta))
            continue
        magnitudes = torch.abs(delta, out=SCRATCH.like("magnitudes", delta))
        # Products with 0 and 1 choose several times faster than masks do.
        taken = torch.ge(magnitudes, reached, out=SCRATCH.like("taken", delta))
        torch.maximum(reached, magnitudes, out=reached)
        delta.mul_(taken)
        chosen.mul_(taken.neg_().add_(1)).add_(delta)
    if chosen is None:
        raise ValueError("no deltas to choose from")
    return chosen


def unified(deltas: Iterable[torch.Tensor], tasks: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    r"""The vector $\tau_u$ of EMR-Merging, and the signs of the deltas at the positions `tasks`, as int8.

    $\tau_u = \gamma \odot \max |\tau_i|$ over the models with $\tau_i \gamma > 0$ and
    $\gamma = \mathrm{sign} \sum_i \tau_i$, -1 where the sum is 0. It lives in scratch memory, the signs do not.
    """
    sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    signs = []
    for index, delta in enumerate(deltas):
        if sums is None:
            sums = (
                SCRATCH.like("total", delta).zero_(),
                SCRATCH.like("positive", delta).zero_(),
                SCRATCH.like("negative", delta).zero_(),
            )
        total, positive, negative = sums
        total.add_(delta)
        torch.maximum(positive, delta, out=positive)
        torch.minimum(negative, delta, out=negative)
        if index in tasks:
            signs.append(torch.sign(delta, out=delta).to(torch.int8))
    if sums is None:
        raise ValueError("no deltas to unify")
    total, positive, negative = sums
    up = torch.gt(total, 0, out=SCRATCH.like("up", total))
    positive.mul_(up)
    return positive.addcmul_(negative, up.neg_().add_(1)), signs


def agreeing(unified: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    r"""$M_i \odot \tau_u$: the entries of `unified` that have the sign of the model's own, the others 0.

    The result lives in scratch memory and is overwritten by the worker's next call.
    """
    ours = torch.sign(unified, out=SCRATCH.like("agreeing", unified))
    return ours.mul_(signs).clamp_(min=0).mul_(unified)


def matters(delta: torch.Tensor, total: torch.Tensor, scale: float) -> torch.Tensor:
    r"""The TALL mask $[|\tau_i| > \lambda_t |\tau_{mt} - \tau_i|]$ as 0 and 1 in the dtype of `delta`; overwrites it.

    `total`: $\tau_{mt}$. The result lives in scratch memory and is overwritten by the worker's next call.
    """
    gap = torch.sub(total, delta, out=SCRATCH.like("gap", delta)).abs_().mul_(scale)
    return torch.gt(delta.abs_(), gap, out=gap)


def consensus(deltas: Iterable[torch.Tensor], total: torch.Tensor, scales: Sequence[float], least: int) -> torch.Tensor:
    """`total` where the masks of at least so many models (`matters`) are set, else 0; overwrites all it is given."""
    votes = SCRATCH.like("votes", total).zero_()
    for delta, scale in zip(deltas, scales, strict=True):
        votes.add_(matters(delta, total, scale))
    return total.mul_(torch.ge(votes, least, out=votes))
