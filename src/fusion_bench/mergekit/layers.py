"""Layers of models as models of their own, numbered as in the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.gathered import Gathered, Origin
from fusion_bench.checkpoint.stacks import Stack, pick_stack, split, stacks_of
from fusion_bench.errors import ConfigError
from fusion_bench.family.layers import structure_of


@dataclass(frozen=True)
class Span:
    """Where a slice stands in the result: its layers are ``offset:offset + count``. Whether what comes before all
    layers belongs to it (`first`), and what comes after them (`last`)."""

    offset: int
    count: int
    first: bool
    last: bool


def only_stack(checkpoint: Checkpoint, where: str) -> Stack:
    """The model's one stack of layers. ConfigError where it has several."""
    stacks = stacks_of(checkpoint)
    if len(stacks) > 1:
        raise ConfigError(
            f"{where}: slices of models with several stacks of layers ({', '.join(stacks)}) are not supported. "
            "Give whole models under `models`."
        )
    return pick_stack(stacks, None, where)


def sliced(
    checkpoint: Checkpoint, layers: tuple[int, int], span: Span, tied: frozenset[str], where: str
) -> tuple[Checkpoint, dict[str, str]]:
    """`checkpoint` with the layers ``start:stop`` alone, renumbered, and what of the rest belongs to the slice.

    `tied`: names that are aliases in every model; they stay aliases. Beside it, name in the result -> name in
    the model. ConfigError where the model has no such layers.
    """
    start, stop = layers
    stack = only_stack(checkpoint, where)
    if stop > stack.count:
        raise ConfigError(
            f"{where}.layer_range=[{start}, {stop}]: the model has {stack.count} layers, so the second number is "
            f"{stack.count} at most."
        )
    everything = {name: checkpoint.info(name) for name in (*checkpoint, *checkpoint.aliases)}
    before = structure_of(checkpoint.config, everything).before
    names: dict[str, str] = {}
    for name in everything:
        place = split(name)
        if place is not None:
            if start <= place[1] < stop:
                names[f"{place[0]}.{place[1] - start + span.offset}.{place[2]}"] = name
        elif (span.first if name in before else span.last) and name not in tied:
            names[name] = name
    stored = {new: old for new, old in names.items() if old not in checkpoint.aliases}
    shown = {checkpoint.stored(old): new for new, old in stored.items()}
    aliases: dict[str, str] = {}
    for new, old in names.items():
        if new not in stored:
            # Where its tensor is shown under another name, an alias stays one; else the tensor bears its name.
            holder = shown.setdefault(checkpoint.stored(old), new)
            if holder != new:
                aliases[new] = holder
    origins = {new: Origin(checkpoint, old) for new, old in names.items() if new not in aliases}
    return Gathered(origins, checkpoint.config, checkpoint, aliases), names


def always_tied(models: Mapping[Any, Checkpoint]) -> dict[str, str]:
    """Names that every model takes for another name of the same tensor: alias -> stored name."""
    first, *others = models.values()
    return {
        alias: stored
        for alias, stored in first.aliases.items()
        if all(other.aliases.get(alias) == stored for other in others)
    }
