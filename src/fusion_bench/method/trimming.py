"""Magnitude trimming of task vectors over whole models or single tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.method.base import Inputs, Scan, Slot
from fusion_bench.method.finite import require_finite
from fusion_bench.parallel import ordered_map

if TYPE_CHECKING:
    import torch

    from fusion_bench.ops.select import Bracket, Cut

_BATCH_ENTRIES = 1 << 25

Group = str
"""What one threshold spans: ``""`` for the whole model, else a tensor's name."""


@dataclass(frozen=True)
class Trim:
    """The thresholds found: by model index and group, with the ties that each slice keeps."""

    remove: tuple[str, ...] = ()
    cuts: dict[tuple[int, Group], Cut] = field(default_factory=dict)
    ties: dict[tuple[int, int], int] = field(default_factory=dict)
    per_tensor: bool = False
    all_ties: bool = False

    def removed(self, name: str) -> bool:
        """Whether tensor `name` takes no part."""
        return any(fnmatchcase(name, pattern) for pattern in self.remove)

    def untouched(self, models: Sequence[str]) -> list[str]:
        """The models of which nothing was trimmed, although something was to be: every threshold falls on 0."""
        values: dict[int, list[float]] = {}
        for (model, _), cut in self.cuts.items():
            values.setdefault(model, []).append(cut.value)
        return [name for index, name in enumerate(models) if values.get(index) and not any(values[index])]

    def apply(self, slot: Slot, model: int, delta: torch.Tensor) -> torch.Tensor:
        """The trimmed delta; may overwrite it."""
        from fusion_bench.ops import select

        cut = self.cuts.get((model, slot.name if self.per_tensor else ""))
        if cut is None:
            return delta
        ties = None if self.all_ties or cut.value == 0 else self.ties.get((slot.index, model), 0)
        return select.trim(delta, cut, ties)


def find_cuts(
    inputs: Inputs,
    scan: Scan,
    share: float,
    scope: Literal["model", "tensor"],
    count: Literal["exact", "authors"],
    remove: Sequence[str],
    at_least: int = 0,
) -> Trim:
    """The exact threshold of every model and group.

    `share`: kept fraction; `exact` keeps int(share*d) entries a group, `authors` one more and all ties.
    """

    trim = Trim(tuple(remove), per_tensor=scope == "tensor", all_ties=count == "authors")
    sizes: dict[Group, int] = {}
    for name in inputs.alignment.floating:
        if not trim.removed(name):
            group = name if trim.per_tensor else ""
            sizes[group] = sizes.get(group, 0) + inputs.alignment.infos[name].numel
    keeps = {group: max(at_least, int(share * size)) + (count == "authors") for group, size in sizes.items()}
    keeps = {group: keep for group, keep in keeps.items() if keep < sizes[group]}
    for batch in _batches(keeps, sizes) if trim.per_tensor else [list(keeps)]:
        search = _Search(inputs, scan, trim, set(batch) if trim.per_tensor else None)
        search.run({group: (sizes[group], keeps[group]) for group in batch})
        trim.cuts.update(search.cuts)
        trim.ties.update(search.ties)
    return trim


def _batches(groups: Iterable[Group], sizes: Mapping[Group, int]) -> Iterator[list[Group]]:
    """Groups in portions of a bounded number of entries: each open group holds memory."""
    batch: list[Group] = []
    for group in groups:
        if batch and sum(sizes[g] for g in batch) + sizes[group] > _BATCH_ENTRIES:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _magnitudes(slot: Slot) -> Any:
    """The magnitudes of each model's delta, in pool order; a non-finite input is refused here, since comparisons
    would drop it silently."""
    for index, delta in enumerate(slot.deltas):
        yield index, require_finite(slot, index, delta.abs_())


class _Search:
    """The passes that find the cuts of some groups."""

    def __init__(self, inputs: Inputs, scan: Scan, trim: Trim, names: set[str] | None) -> None:
        self.scan, self.trim, self.names = scan, trim, names
        self.models, self.threads = range(len(inputs.models)), inputs.threads
        self.cuts: dict[tuple[int, Group], Cut] = {}
        self.ties: dict[tuple[int, int], int] = {}

    def run(self, wanted: Mapping[Group, tuple[int, int]]) -> None:
        """`wanted`: group -> (entries, how many of them to keep)."""
        from fusion_bench.ops import select

        for group in [g for g, (_, keep) in wanted.items() if keep == 0]:
            self.cuts.update({(model, group): select.NOTHING for model in self.models})
        wanted = {group: sizes for group, sizes in wanted.items() if sizes[1] > 0}
        brackets = self._brackets(wanted) if wanted else {}
        while brackets:
            misled: dict[tuple[int, Group], Bracket] = {}
            crowded: dict[tuple[int, Group], Bracket] = {}
            tallies = self._pass("finding thresholds", brackets, select.tally)
            for key, bracket in brackets.items():
                outcome = select.resolve([tally for _, tally in tallies[key]], bracket)
                if isinstance(outcome, select.Cut):
                    self.cuts[key] = outcome
                    self._share_ties(key[0], outcome, tallies[key])
                elif outcome is not None:
                    misled[key] = outcome
                else:
                    crowded[key] = bracket
            brackets = self._narrowed({**misled, **crowded})

    def _group(self, slot: Slot) -> Group:
        return slot.name if self.trim.per_tensor else ""

    def _pass(self, what: str, of: Mapping[tuple[int, Group], Any], measure: Any) -> dict[tuple[int, Group], list[Any]]:
        """`measure(magnitudes, of[key])` of every slice of every open model and group, by key, in slot order."""

        def visit(slot: Slot) -> list[tuple[tuple[int, Group], tuple[int, Any]]]:
            group = self._group(slot)
            if self.trim.removed(slot.name) or not any((model, group) in of for model in self.models):
                return []
            return [
                ((model, group), (slot.index, measure(magnitudes.reshape(-1), of[model, group])))
                for model, magnitudes in _magnitudes(slot)
                if (model, group) in of
            ]

        found: dict[tuple[int, Group], list[Any]] = {key: [] for key in of}
        for contributions in self.scan(visit, what, self.names):
            for key, measured in contributions:
                found[key].append(measured)
        return found

    def _brackets(self, wanted: Mapping[Group, tuple[int, int]]) -> dict[tuple[int, Group], Bracket]:
        import torch

        from fusion_bench.ops import select

        def sample(slot: Slot) -> tuple[Group, float, list[torch.Tensor]] | None:
            if self.trim.removed(slot.name):
                return None
            stands_for = slot.covers / max(1, slot.stop - slot.start)
            return self._group(slot), stands_for, [m.reshape(-1).clone() for _, m in _magnitudes(slot)]

        pieces: dict[Group, list[tuple[float, list[torch.Tensor]]]] = {group: [] for group in wanted}
        for piece in self.scan(sample, "sampling magnitudes", self.names, sample=True):
            if piece is not None and piece[0] in pieces:
                pieces[piece[0]].append(piece[1:])

        def place(key: tuple[int, Group]) -> Bracket:
            model, group = key
            values = [tensors[model] for _, tensors in pieces[group]]
            weights = [torch.full_like(v, w) for v, (w, _) in zip(values, pieces[group], strict=True)]
            return select.bracket(torch.cat(values), torch.cat(weights), *wanted[group])

        keys = [(model, group) for group in wanted for model in self.models]
        return dict(zip(keys, ordered_map(place, keys, self.threads), strict=True))

    def _share_ties(self, model: int, cut: Cut, tallies: list[tuple[int, Any]]) -> None:
        """The entries equal to the cut go to the slices in flat order, until none are left."""
        import torch

        left = cut.ties
        for index, tally in tallies:
            if left <= 0:
                return
            equal = tally.inside if tally.values is None else int(torch.count_nonzero(tally.values == cut.value))
            if equal:
                self.ties[index, model] = min(equal, left)
                left -= self.ties[index, model]

    def _narrowed(self, brackets: Mapping[tuple[int, Group], Bracket]) -> dict[tuple[int, Group], Bracket]:
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
