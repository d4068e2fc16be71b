"""Sign election and disjoint merging of trimmed task vectors in one pass over the models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fusion_bench.ops.scratch import SCRATCH

MergeFunction = Literal["sum", "mean", "max"]


@dataclass
class Votes:
    """Running results per coordinate: the elected total, and what each sign would merge to.

    `total`: the sum whose sign is elected. `positive`, `negative`: sum (or largest magnitude) of the entries of that
    sign. `for_positive`, `for_negative`: the weights that stand behind each, kept for means alone.
    """

    total: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    for_positive: torch.Tensor | None
    for_negative: torch.Tensor | None


def collect(
    deltas: Iterable[torch.Tensor],
    weights: Sequence[float],
    merge_func: MergeFunction,
    weighted_signs: bool,
    count_weights: bool,
) -> Votes:
    """Reads each delta once; the result lives in scratch memory and is overwritten by the worker's next call.

    `weights` multiply what is merged, and what elects where `weighted_signs` is set;
    `count_weights` lets a mean divide by the weights of the agreeing models, else by their number.
    """
    votes: Votes | None = None
    for delta, weight in zip(deltas, weights, strict=True):
        if votes is None:
            votes = _no_votes(delta, merge_func == "mean")
        if not weighted_signs:
            _count(votes, delta, weight if count_weights else 1.0)
            votes.total.add_(delta)
        if weight != 1:
            delta = delta.mul_(weight)
        if weighted_signs:
            _count(votes, delta, weight if count_weights else 1.0)
            votes.total.add_(delta)
        towards_positive = torch.clamp(delta, min=0, out=SCRATCH.like("towards positive", delta))
        towards_negative = torch.clamp(delta, max=0, out=SCRATCH.like("towards negative", delta))
        if weight < 0 and not weighted_signs:
            # A negative weight turns an entry round, yet it belongs to the sign that it was elected by.
            towards_positive, towards_negative = towards_negative, towards_positive
        if merge_func == "max":
            torch.maximum(votes.positive, towards_positive, out=votes.positive)
            torch.minimum(votes.negative, towards_negative, out=votes.negative)
        else:
            votes.positive.add_(towards_positive)
            votes.negative.add_(towards_negative)
    if votes is None:
        raise ValueError("no deltas to merge")
    return votes


def _count(votes: Votes, voter: torch.Tensor, behind: float) -> None:
    """Adds `behind` to the side that each entry of `voter` takes; zeros take none. Only means need it."""
    if votes.for_positive is None or votes.for_negative is None:
        return
    signs = torch.sign(voter, out=SCRATCH.like("signs", voter))
    votes.for_positive.add_(torch.clamp(signs, min=0, out=SCRATCH.like("towards positive", voter)), alpha=behind)
    votes.for_negative.sub_(torch.clamp(signs, max=0, out=SCRATCH.like("towards negative", voter)), alpha=behind)


def _no_votes(like: torch.Tensor, count: bool) -> Votes:
    def zeros(role: str) -> torch.Tensor:
        return SCRATCH.like(role, like).zero_()

    behind = (zeros("for positive"), zeros("for negative")) if count else (None, None)
    return Votes(zeros("total"), zeros("positive"), zeros("negative"), *behind)


def elect(votes: Votes, at_zero: Literal["none", "positive", "negative"]) -> torch.Tensor:
    """The merged delta: per coordinate the sum, mean or largest entry of the elected sign. Overwrites the votes.

    `at_zero` decides coordinates whose total is exactly 0: no update, or the entries of one sign.
    """
    positive, negative = votes.positive, votes.negative
    if votes.for_positive is not None and votes.for_negative is not None:
        positive = _mean(positive, votes.for_positive)
        negative = _mean(negative, votes.for_negative)
    elected = votes.total.sign_()
    if at_zero != "none":
        elected.add_(0.5 if at_zero == "positive" else -0.5).sign_()
    # Products with 0 and 1 choose a side several times faster than masks do.
    up = torch.clamp(elected, min=0, out=SCRATCH.like("towards positive", elected))
    positive.mul_(up)
    return positive.addcmul_(negative, up.sub_(elected))


def _mean(total: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
    return total.div_(behind.masked_fill_(behind == 0, 1))
