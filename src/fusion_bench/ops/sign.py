"""Sign election and disjoint merging of trimmed task vectors in one pass over the models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

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
    """Reads each delta once. `weights` multiply what is merged, and what elects where `weighted_signs` is set;
    `count_weights` lets a mean divide by the weights of the agreeing models, else by their number."""
    votes: Votes | None = None
    for delta, weight in zip(deltas, weights, strict=True):
        if votes is None:
            votes = Votes(torch.zeros_like(delta), torch.zeros_like(delta), torch.zeros_like(delta), None, None)
            if merge_func == "mean":
                votes.for_positive, votes.for_negative = torch.zeros_like(delta), torch.zeros_like(delta)
        turned = weight < 0 and not weighted_signs
        if not weighted_signs:
            votes.total.add_(delta)
        if weight != 1:
            delta = delta.mul_(weight)
        if weighted_signs:
            votes.total.add_(delta)
        # A negative weight turns an entry round, yet it belongs to the sign that it was elected by.
        towards_positive, towards_negative = delta.clamp(min=0), delta.clamp(max=0)
        if turned:
            towards_positive, towards_negative = towards_negative, towards_positive
        if votes.for_positive is not None and votes.for_negative is not None:
            behind = weight if count_weights else 1.0
            votes.for_positive.add_((towards_positive != 0).to(delta.dtype), alpha=behind)
            votes.for_negative.add_((towards_negative != 0).to(delta.dtype), alpha=behind)
        if merge_func == "max":
            torch.maximum(votes.positive, towards_positive, out=votes.positive)
            torch.minimum(votes.negative, towards_negative, out=votes.negative)
        else:
            votes.positive.add_(towards_positive)
            votes.negative.add_(towards_negative)
    if votes is None:
        raise ValueError("no deltas to merge")
    return votes


def elect(votes: Votes, at_zero: Literal["none", "positive", "negative"]) -> torch.Tensor:
    """The merged delta: per coordinate the sum, mean or largest entry of the elected sign.

    `at_zero` decides coordinates whose total is exactly 0: no update, or the entries of one sign.
    """
    positive, negative = votes.positive, votes.negative
    if votes.for_positive is not None and votes.for_negative is not None:
        positive = _mean(positive, votes.for_positive)
        negative = _mean(negative, votes.for_negative)
    up = votes.total >= 0 if at_zero == "positive" else votes.total > 0
    down = votes.total <= 0 if at_zero == "negative" else votes.total < 0
    return positive.masked_fill_(~up, 0).add_(negative.masked_fill_(~down, 0))


def _mean(total: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
    return total.div_(behind.masked_fill_(behind == 0, 1))
