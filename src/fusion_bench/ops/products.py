"""Inner products of long vectors."""

from __future__ import annotations

import torch

_CHUNK = 1 << 15


def inner(left: torch.Tensor, right: torch.Tensor) -> float:
    """The inner product of two 1-D tensors: chunks in their own dtype, added in float64 in index order."""
    return sum(
        float(torch.dot(left[at : at + _CHUNK], right[at : at + _CHUNK])) for at in range(0, left.numel(), _CHUNK)
    )


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """The entropy of each row's distribution, -sum p log(p + 1e-8), in nats: rows."""
    found: torch.Tensor = -(logits.softmax(-1) * (logits.softmax(-1) + 1e-8).log()).sum(-1)
    return found
