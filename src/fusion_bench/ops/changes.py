"""What models changed relative to a base, entry by entry."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fusion_bench.ops.scratch import SCRATCH


def mean_of_changes(deltas: Iterable[torch.Tensor], threshold: float) -> torch.Tensor:
    """The mean over the deltas whose magnitude exceeds `threshold`, entry by entry; 0 where none does.

    Overwrites the deltas. The result lives in scratch memory and is overwritten by the worker's next call.
    """
    total: torch.Tensor | None = None
    count: torch.Tensor | None = None
    for delta in deltas:
        if total is None or count is None:
            total = SCRATCH.like("sum of changes", delta).zero_()
            count = SCRATCH.like("number of changes", delta).zero_()
        changed = SCRATCH.like("changed", delta)
        torch.gt(torch.abs(delta, out=changed), threshold, out=changed)
        count.add_(changed)
        # A product, so that what is not a number is not dropped.
        total.addcmul_(delta, changed)
    if total is None or count is None:
        raise ValueError("no deltas")
    return total.div_(count.clamp_(min=1))


def extrapolated(base: torch.Tensor, model: torch.Tensor, factor: float) -> torch.Tensor:
    """``model + factor * (model - base)``, overwriting `model`; `model` itself, bit for bit, where the factor is 0."""
    beyond = torch.sub(model, base, out=SCRATCH.like("beyond", model))
    return model.add_(beyond, alpha=factor)
