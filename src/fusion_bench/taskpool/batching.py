"""Batches of prompts with little padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Batch = list[int]


@dataclass(frozen=True, slots=True)
class BatchSize:
    """Upper bounds: padded tokens and rows of a batch that is encoded at once, and of a group that is decoded at once.

    Encoding is arithmetic and wants little padding, so its batches are small. A step of decoding reads every weight for
    one token a row, so it wants many rows. A single prompt may exceed the bound on tokens.
    """

    batch_tokens: int
    batch_rows: int
    group_tokens: int
    group_rows: int

    @classmethod
    def choose(cls, asked: int | Literal["auto"], kind: Literal["small", "cpu", "gpu"]) -> BatchSize:
        """What `batch_size` asks for; ``auto`` suits the kind of work: a small model on the CPU, any on CPU or GPU."""
        if asked != "auto":
            return cls(batch_tokens=asked << 20, batch_rows=asked, group_tokens=asked << 20, group_rows=asked)
        return _AUTOMATIC[kind]


# Measured on two cores. A large model's batches of some hundred tokens stay in the processor's cache and waste 4 % on
# padding where 2048 tokens waste 20 %; a small model spends its time between operations, so its batches are larger.
_AUTOMATIC = {
    "small": BatchSize(batch_tokens=4096, batch_rows=128, group_tokens=16384, group_rows=320),
    "cpu": BatchSize(batch_tokens=512, batch_rows=64, group_tokens=4096, group_rows=64),
    "gpu": BatchSize(batch_tokens=32768, batch_rows=1024, group_tokens=65536, group_rows=1024),
}


def plan(lengths: Sequence[int], size: BatchSize) -> list[list[Batch]]:
    """Positions in `lengths`, longest first, as groups of batches of neighbours in length.

    Longest first: what does not fit into memory fails at the beginning.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[Batch]] = []
    rows, width = 0, 0
    for batch in _batches(order, lengths, size):
        rows += len(batch)
        if groups and rows <= size.group_rows and rows * width <= size.group_tokens:
            groups[-1].append(batch)
        else:
            groups.append([batch])
            rows, width = len(batch), lengths[batch[0]]
    return groups


def _batches(order: Sequence[int], lengths: Sequence[int], size: BatchSize) -> list[Batch]:
    batches: list[Batch] = []
    for position in order:
        last = batches[-1] if batches else []
        fits = last and len(last) < size.batch_rows and (len(last) + 1) * lengths[last[0]] <= size.batch_tokens
        if fits:
            last.append(position)
        else:
            batches.append([position])
    return batches
