"""Magnitude trimming of task vectors over whole models or single tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from fusion_bench.method.base import Inputs, Scan, Slot
from fusion_bench.method.finite import require_finite
from fusion_bench.method.selection import Key, Selection, Values, over_model, over_tensors

if TYPE_CHECKING:
    import torch

    from fusion_bench.ops.select import Cut


@dataclass(frozen=True)
class Trim:
    """The thresholds found: by model index and tensor ("" for the whole model), with the ties that each slice keeps."""

    remove: tuple[str, ...] = ()
    selection: Selection = field(default_factory=Selection)
    per_tensor: bool = False
    all_ties: bool = False

    def removed(self, name: str) -> bool:
        """Whether tensor `name` takes no part."""
        return any(fnmatchcase(name, pattern) for pattern in self.remove)

    def untouched(self, models: Sequence[str]) -> list[str]:
        """The models of which nothing was trimmed, although something was to be: every threshold falls on 0."""
        values: dict[int, list[float]] = {}
        for (model, _), cut in self.selection.cuts.items():
            values.setdefault(model, []).append(cut.value)
        return [name for index, name in enumerate(models) if values.get(index) and not any(values[index])]

    def cut(self, slot: Slot, channel: int) -> tuple[Cut, int | None] | None:
        """The cut of a slice and how many of the entries equal to it stay; None keeps all of them. No cut: None."""
        cut = self.selection.cuts.get((channel, slot.name if self.per_tensor else ""))
        if cut is None:
            return None
        return cut, None if self.all_ties or cut.value == 0 else self.selection.ties.get((slot.index, channel), 0)

    def apply(self, slot: Slot, model: int, delta: torch.Tensor) -> torch.Tensor:
        """The trimmed delta; may overwrite it."""
        from fusion_bench.ops import select

        found = self.cut(slot, model)
        return delta if found is None else select.trim(delta, *found)


def find_cuts(
    inputs: Inputs,
    scan: Scan,
    share: float,
    scope: Literal["model", "tensor"],
    count: Literal["exact", "authors"],
    remove: Sequence[str],
    at_least: int = 0,
) -> Trim:
    """The exact threshold of every model, over the model or each of its tensors.

    `share`: kept fraction; `exact` keeps int(share*d) of d entries, `authors` one more and all ties.
    """
    bare = Trim(tuple(remove))
    names = {name for name in inputs.alignment.floating if not bare.removed(name)}

    def kept(size: int) -> int | None:
        keep = max(at_least, int(share * size)) + (count == "authors")
        return None if keep >= size else keep

    models = range(len(inputs.models))
    if scope == "tensor":
        sizes = {name: inputs.alignment.infos[name].numel for name in sorted(names)}
        wanted = {(model, name): kept(size) for name, size in sizes.items() for model in models}
        return Trim(tuple(remove), tensor_cuts(inputs, scan, magnitudes, wanted), True, count == "authors")
    keep = kept(sum(inputs.alignment.infos[name].numel for name in names))
    found = _decided({(model, ""): keep for model in models})
    if keep:
        spared = names if remove else None
        found = over_model(inputs, scan, magnitudes, dict.fromkeys(models, keep), spared)
    return Trim(tuple(remove), found, False, count == "authors")


def tensor_cuts(inputs: Inputs, scan: Scan, values: Values, keeps: Mapping[Key, int | None]) -> Selection:
    """The cuts of single tensors. `keeps`: how many of each stream stay; None for all of them, which takes no cut."""
    found = over_tensors(inputs, scan, values, {key: keep for key, keep in keeps.items() if keep})
    found.cuts.update(_decided(keeps).cuts)
    return found


def _decided(keeps: Mapping[Key, int | None]) -> Selection:
    """The cuts that need no search: those that keep nothing."""
    from fusion_bench.ops import select

    return Selection({key: select.NOTHING for key, keep in keeps.items() if keep == 0})


def magnitudes(slot: Slot) -> Iterator[tuple[int, torch.Tensor]]:
    """The magnitudes of each model's delta, in pool order; a non-finite input is refused here, since comparisons
    would drop it silently."""
    for index, delta in enumerate(slot.deltas):
        yield index, require_finite(slot, index, delta.abs_())
