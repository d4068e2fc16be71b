"""Exact selection of the k largest magnitudes of a stream, in bounded memory.

One cheap sampled pass places a narrow bracket around the k-th largest magnitude. One full pass counts what lies above
the bracket and keeps what lies inside it, which yields the exact value unless the sample misled; then further passes
narrow the bracket by counting at 15 edges inside it until it holds the value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fusion_bench.ops.scratch import SCRATCH

# Inside a bracket at most this share of a slice is kept; more means the bracket was badly placed.
_SHARE = 1 / 6
_EDGES = 15


@dataclass(frozen=True)
class Bracket:
    """Magnitudes in ``[low, high)`` are undecided; `keep` of all entries are to be kept.

    `inside`: about how many entries are undecided, by the sample.
    """

    low: float
    high: float
    keep: int
    dtype: torch.dtype
    inside: float = 0.0

    @property
    def single(self) -> bool:
        """Whether only one representable value is left inside."""
        return self.high <= step(self.low, math.inf, self.dtype)


@dataclass(frozen=True)
class Tally:
    """What one slice contributes: entries >= high, entries inside, the inside magnitudes unless they are too many.

    `zeros`: entries equal to 0 where the bracket begins there; they are counted apart from those inside, since sparse
    task vectors hold more of them than could be kept.
    """

    above: int
    inside: int
    values: torch.Tensor | None
    zeros: int = 0


@dataclass(frozen=True)
class Cut:
    """The outcome: magnitudes above `value` are kept, and the first `ties` of those equal to it, in flat order."""

    value: float
    ties: int


EVERY = -1
"""In the place of a number of ties: all that there are."""

NOTHING = Cut(math.inf, 0)
"""The cut that keeps no entry."""


def step(value: float, towards: float, dtype: torch.dtype) -> float:
    """The neighbour of `value` in `dtype`."""
    return float(torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(towards, dtype=dtype)))


def bracket(sample: torch.Tensor, weights: torch.Tensor, count: int, keep: int) -> Bracket:
    """A bracket that holds the `keep`-th largest of `count` magnitudes, judged by a weighted sample of them.

    `sample` and `weights`: 1-D, the magnitudes and how many entries each stands for. A sample of everything, and one
    too small to judge by, give the widest bracket.
    """
    if sample.numel() < 4096 or sample.numel() * 2 > count:
        return Bracket(0.0, math.inf, keep, sample.dtype, count)
    order = torch.argsort(sample, descending=True)
    share = torch.cumsum(weights[order].double(), 0)
    share /= share[-1].clone()
    target = keep / count
    # Neighbouring entries resemble one another, so the sample is worth less than its size: a wide margin.
    margin = max(8 * math.sqrt(target * (1 - target) / sample.numel()), 0.006)
    upper = int(torch.searchsorted(share, max(0.0, target - margin)))
    lower = int(torch.searchsorted(share, min(1.0, target + margin)))
    high = math.inf if target <= margin else step(float(sample[order[upper]]), math.inf, sample.dtype)
    low = 0.0 if target + margin >= 1 or lower >= order.numel() else float(sample[order[lower]])
    return Bracket(low, high, keep, sample.dtype, 2 * margin * count)


def tally(magnitudes: torch.Tensor, within: Bracket) -> Tally:
    """Counts one slice of magnitudes (1-D, on the CPU) against a bracket."""
    if within.low == 0.0 and within.high == math.inf:
        return Tally(0, magnitudes.numel(), magnitudes.clone())
    # NumPy compares, counts and compresses several times faster than torch does on one thread.
    values = magnitudes.numpy()
    inside = SCRATCH.like("inside", magnitudes, torch.bool).numpy()
    zeros = 0
    if within.low == 0.0 and not within.single:
        np.greater(values, values.dtype.type(0), out=inside)
        zeros = inside.size - int(np.count_nonzero(inside))
    else:
        np.greater_equal(values, values.dtype.type(within.low), out=inside)
    above = 0
    if within.high != math.inf:
        below = SCRATCH.like("below", magnitudes, torch.bool).numpy()
        np.less(values, values.dtype.type(within.high), out=below)
        above = below.size - int(np.count_nonzero(below))
        np.logical_and(inside, below, out=inside)
    count = int(np.count_nonzero(inside))
    if within.single or count > max(64, values.size * _SHARE):
        return Tally(above, count, None, zeros)
    return Tally(above, count, torch.from_numpy(values[inside]), zeros)


def resolve(tallies: list[Tally], within: Bracket) -> Cut | Bracket | None:
    """The cut, once all slices are counted; a bracket to count again where the sample misled; None: narrow it."""
    above = sum(t.above for t in tallies)
    inside = sum(t.inside for t in tallies)
    if above >= within.keep > 0:
        return Bracket(within.high, math.inf, within.keep, within.dtype)
    zeros = sum(t.zeros for t in tallies)
    if above + inside < within.keep <= above + inside + zeros:
        return Cut(0.0, within.keep - above - inside)
    if above + inside < within.keep:
        return Bracket(0.0, within.low, within.keep, within.dtype)
    if within.single:
        return Cut(within.low, within.keep - above)
    if any(t.values is None and t.inside for t in tallies):
        return None
    values = torch.cat([t.values for t in tallies if t.values is not None])
    wanted = within.keep - above
    place = values.numel() - wanted
    value = float(np.partition(values.numpy(), place)[place])
    larger = int(np.count_nonzero(values.numpy() > value))
    return Cut(value, wanted - larger)


def exact(values: torch.Tensor, keep: int) -> Cut:
    """The cut that keeps `keep` (1 to all) of numbers that are at hand (1-D, on the CPU, not negative)."""
    place = values.numel() - keep
    ordered = np.partition(values.numpy(), place)
    value = float(ordered[place])
    return Cut(value, keep - int(np.count_nonzero(ordered[place:] > ordered[place])))


def edges(within: Bracket) -> torch.Tensor:
    """Fifteen magnitudes that divide a bracket evenly in the order of representable values, ascending."""
    dtype = within.dtype
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    finite = min(within.high, torch.finfo(dtype).max)
    ends = torch.tensor([within.low, finite], dtype=dtype).view(integer).tolist()
    steps = [ends[0] + (ends[1] - ends[0]) * i // (_EDGES + 1) for i in range(1, _EDGES + 1)]
    return torch.tensor(sorted(set(steps)), dtype=integer).view(dtype)


def count_at(magnitudes: torch.Tensor, at: torch.Tensor) -> list[int]:
    """How many magnitudes are at least each edge."""
    values = magnitudes.numpy()
    return [int(np.count_nonzero(values >= edge)) for edge in at.numpy()]


def narrowed(counts: list[list[int]], at: torch.Tensor, within: Bracket) -> Bracket:
    """The part of a bracket between the two neighbouring edges that the wanted magnitude lies between."""
    low, high = within.low, within.high
    for edge, *slices in zip(at.tolist(), *counts, strict=True):
        if sum(slices) >= within.keep:
            low = max(low, edge)
        else:
            high = min(high, edge)
            break
    return Bracket(low, high, within.keep, within.dtype, within.inside / (_EDGES + 1))


def trim(delta: torch.Tensor, cut: Cut, ties: int | None) -> torch.Tensor:
    """`delta` with what the cut drops set to zero; may overwrite it.

    `ties`: how many entries equal to the cut stay, lowest index first; None or EVERY keeps them all.
    """
    every = ties is None or ties == EVERY
    if cut.value == 0 and every:
        return delta
    if every or ties == 0:
        # One fused pass: entries of magnitude <= the bound become zero.
        bound = step(cut.value, 0.0, delta.dtype) if every else cut.value
        return torch.hardshrink(delta, bound, out=delta)
    magnitudes = delta.abs()
    drop = magnitudes < cut.value
    _mark(drop, magnitudes, cut.value, ties, None)
    return delta.masked_fill_(drop, 0)


def without(delta: torch.Tensor, cut: Cut, ties: int) -> torch.Tensor:
    """`delta` with what `trim` would keep set to zero; may overwrite it. A cut at 0 keeps all that is not 0."""
    magnitudes = delta.abs()
    if ties == EVERY:
        return delta.masked_fill_(magnitudes >= cut.value, 0)
    drop = magnitudes > cut.value
    if ties:
        _mark(drop, magnitudes, cut.value, None, ties)
    return delta.masked_fill_(drop, 0)


def _mark(mask: torch.Tensor, magnitudes: torch.Tensor, value: float, start: int | None, stop: int | None) -> None:
    """Sets the mask at the entries of magnitude `value` from the `start`-th to before the `stop`-th, in flat order."""
    places = (magnitudes.reshape(-1) == value).nonzero().reshape(-1)[start:stop]
    mask.view(-1)[places] = True
