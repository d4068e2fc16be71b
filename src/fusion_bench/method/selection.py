"""The k-th largest of non-negative numbers that stream by: exact, in bounded memory, for many streams at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_bench.method.base import Inputs, Scan, Slot
from fusion_bench.parallel import ordered_map

if TYPE_CHECKING:
    import torch

    from fusion_bench.ops.select import Bracket, Cut, Tally

# Tensors larger than a slice are searched together up to so many entries (times streams): each of them holds memory.
_BATCH_ENTRIES = 2**25
_BATCH_STREAMS = 8

# What a search over the model may hold of the memory budget, and what it holds of a model that is no larger than that:
# the margin of the sampled bracket, on both sides.
_SHARE = 0.25
_UNDECIDED = 0.012

Key = tuple[int, str]
"""A stream of numbers: a channel, such as the index of a model, and the tensor that it spans, "" for all of them."""

Values = Callable[[Slot], "Iterator[tuple[int, torch.Tensor]]"]
"""The numbers (>= 0, finite) of a slice, channel by channel, each valid until the next is asked for."""


@dataclass(frozen=True)
class Selection:
    """The cuts found, and how many of the entries equal to one each slice keeps: by (slot index, channel)."""

    cuts: dict[Key, Cut] = field(default_factory=dict)
    ties: dict[tuple[int, int], int] = field(default_factory=dict)

    def share_ties(self, key: Key, cut: Cut, equals: Iterable[tuple[int, int]]) -> None:
        """The entries equal to the cut go to the slices in flat order, until none are left. `equals`: slice, number.

        A slice that keeps all of its own is marked so: finding them one by one would take several times longer, and
        task vectors of half-precision models hold many equal magnitudes.
        """
        from fusion_bench.ops.select import EVERY

        left = cut.ties
        for index, equal in equals:
            if left <= 0:
                return
            if equal:
                self.ties[index, key[0]] = EVERY if equal <= left else left
                left -= min(equal, left)


def over_model(
    inputs: Inputs, scan: Scan, values: Values, keeps: Mapping[int, int], names: set[str] | None = None
) -> Selection:
    """For each channel of `keeps` the cut that keeps so many (1 to all) of its numbers over the whole model.

    `names`: the tensors that take part; None for all.
    """
    infos = inputs.alignment.infos
    entries = sum(infos[name].numel for name in inputs.alignment.floating if names is None or name in names)
    search = _Search(scan, values, False, names, inputs.threads)
    search.run({(channel, ""): (entries, keep) for channel, keep in keeps.items()}, inputs.budget * _SHARE)
    return search.found


def held(inputs: Inputs, channels: int) -> int:
    """Bytes that a search over the model holds at most, for so many channels."""
    infos = inputs.alignment.infos
    entries = sum(infos[name].numel for name in inputs.alignment.floating)
    return int(min(inputs.budget * _SHARE, _UNDECIDED * channels * entries * 4))


def over_tensors(inputs: Inputs, scan: Scan, values: Values, keeps: Mapping[Key, int]) -> Selection:
    """For each channel and tensor of `keeps` the cut that keeps so many (1 to all) of its numbers."""
    from fusion_bench.checkpoint.base import BLOCK

    found = Selection()
    infos = inputs.alignment.infos
    by_tensor: dict[str, dict[Key, tuple[int, int]]] = {}
    for key, keep in keeps.items():
        by_tensor.setdefault(key[1], {})[key] = infos[key[1]].numel, keep
    small = {name for name in by_tensor if infos[name].numel <= BLOCK}
    _at_once(scan, values, {key: keep for name in small for key, (_, keep) in by_tensor[name].items()}, small, found)
    large = {name: len(keys) for name, keys in by_tensor.items() if name not in small}
    for batch in _batches(large, inputs):
        search = _Search(scan, values, True, set(batch), inputs.threads)
        search.run({key: sizes for name in batch for key, sizes in by_tensor[name].items()})
        found.cuts.update(search.found.cuts)
        found.ties.update(search.found.ties)
    return found


def _batches(streams: Mapping[str, int], inputs: Inputs) -> Iterator[list[str]]:
    """Tensors in portions of a bounded number of entries: each open stream holds memory."""
    batch: list[str] = []
    held = 0
    for name, count in streams.items():
        weight = inputs.alignment.infos[name].numel * max(1, -(-count // _BATCH_STREAMS))
        if batch and held + weight > _BATCH_ENTRIES:
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += weight
    if batch:
        yield batch


def _at_once(scan: Scan, values: Values, keeps: Mapping[Key, int], names: set[str], found: Selection) -> None:
    """The cuts of tensors that a slice holds: decided where they are read, in one pass and without any memory."""
    import torch

    from fusion_bench.ops import select

    if not names:
        return

    def visit(slot: Slot) -> list[tuple[Key, int, Any]]:
        whole = slot.stop - slot.start == _numel(slot.shape)
        results: list[tuple[Key, int, Any]] = []
        for channel, numbers in values(slot):
            key = (channel, slot.name)
            if key in keeps:
                flat = numbers.reshape(-1).cpu()
                results.append((key, slot.index, select.exact(flat, keeps[key]) if whole else flat.clone()))
        return results

    parts: dict[Key, list[tuple[int, torch.Tensor]]] = {}
    for results in scan(visit, "finding thresholds", names):
        for key, index, result in results:
            if isinstance(result, select.Cut):
                found.cuts[key] = result
                found.ties[index, key[0]] = result.ties
            else:
                parts.setdefault(key, []).append((index, result))
    for key, pieces in parts.items():
        cut = select.exact(torch.cat([piece for _, piece in pieces]), keeps[key])
        found.cuts[key] = cut
        found.share_ties(key, cut, ((index, int((piece == cut.value).sum())) for index, piece in pieces))


def _numel(shape: tuple[int, ...]) -> int:
    from math import prod

    return prod(shape)


class _Search:
    """The passes that find the cuts of some streams."""

    def __init__(self, scan: Scan, values: Values, per_tensor: bool, names: set[str] | None, threads: int) -> None:
        self.scan, self.values, self.per_tensor, self.names, self.threads = scan, values, per_tensor, names, threads
        self.found = Selection()

    def run(self, wanted: Mapping[Key, tuple[int, int]], room: float = math.inf) -> None:
        """`wanted`: stream -> (entries, how many of them to keep); `room`: bytes for undecided numbers."""
        from fusion_bench.ops import select

        brackets = self._brackets(wanted) if wanted else {}
        while sum(b.inside * b.dtype.itemsize for b in brackets.values()) > room:
            brackets = self._narrowed(brackets)
        while brackets:
            misled: dict[Key, Bracket] = {}
            crowded: dict[Key, Bracket] = {}
            tallies = self._pass("finding thresholds", brackets, select.tally)
            for key, bracket in brackets.items():
                outcome = select.resolve([tally for _, tally in tallies[key]], bracket)
                if isinstance(outcome, select.Cut):
                    self.found.cuts[key] = outcome
                    self.found.share_ties(key, outcome, _equals(tallies[key], outcome))
                elif outcome is not None:
                    misled[key] = outcome
                else:
                    crowded[key] = bracket
            brackets = self._narrowed({**misled, **crowded})

    def _group(self, slot: Slot) -> str:
        return slot.name if self.per_tensor else ""

    def _pass(self, what: str, of: Mapping[Key, Any], measure: Any) -> dict[Key, list[Any]]:
        """`measure(numbers, of[key])` of every slice of every open stream, by key, in slot order."""

        def visit(slot: Slot) -> list[tuple[Key, tuple[int, Any]]]:
            group = self._group(slot)
            return [
                ((channel, group), (slot.index, measure(numbers.reshape(-1).cpu(), of[channel, group])))
                for channel, numbers in self.values(slot)
                if (channel, group) in of
            ]

        names = {group for _, group in of} if self.per_tensor else self.names
        found: dict[Key, list[Any]] = {key: [] for key in of}
        for contributions in self.scan(visit, what, names):
            for key, measured in contributions:
                found[key].append(measured)
        return found

    def _brackets(self, wanted: Mapping[Key, tuple[int, int]]) -> dict[Key, Bracket]:
        import torch

        from fusion_bench.ops import select

        def sample(slot: Slot) -> tuple[float, list[tuple[Key, torch.Tensor]]]:
            group = self._group(slot)
            stands_for = slot.covers / max(1, slot.stop - slot.start)
            return stands_for, [((c, group), v.reshape(-1).cpu().clone()) for c, v in self.values(slot)]

        pieces: dict[Key, list[tuple[float, torch.Tensor]]] = {key: [] for key in wanted}
        for stands_for, sampled in self.scan(sample, "sampling magnitudes", self.names, sample=True):
            for key, numbers in sampled:
                if key in pieces:
                    pieces[key].append((stands_for, numbers))

        def place(key: Key) -> Bracket:
            weights = [torch.full_like(numbers, weight) for weight, numbers in pieces[key]]
            return select.bracket(torch.cat([n for _, n in pieces[key]]), torch.cat(weights), *wanted[key])

        keys = list(wanted)
        return dict(zip(keys, ordered_map(place, keys, self.threads), strict=True))

    def _narrowed(self, brackets: Mapping[Key, Bracket]) -> dict[Key, Bracket]:
        """The brackets cut down by counting at edges inside them; needed only where a sample misled."""
        from fusion_bench.ops import select

        if not brackets:
            return {}
        at = {key: select.edges(bracket) for key, bracket in brackets.items()}
        counts = self._pass("narrowing thresholds", at, select.count_at)
        return {
            key: select.narrowed([count for _, count in counts[key]], at[key], bracket)
            for key, bracket in brackets.items()
        }


def _equals(tallies: list[tuple[int, Tally]], cut: Cut) -> Iterator[tuple[int, int]]:
    """How many of the entries each slice tallied equal the cut."""
    import torch

    for index, tally in tallies:
        yield index, tally.inside if tally.values is None else int(torch.count_nonzero(tally.values == cut.value))
