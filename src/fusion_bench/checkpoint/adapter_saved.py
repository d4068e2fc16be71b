"""Tensors that an adapter saved in full, put in the place of the base's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fusion_bench.checkpoint.adapter_edits import Edit
from fusion_bench.checkpoint.adapter_names import BaseNames
from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
from fusion_bench.checkpoint.peft_config import AdapterConfig


@dataclass
class Plan:
    """What becomes of every tensor.

    `infos`, `aliases`: those of the result. `replaced`: stored name -> name in the adapter file of the tensor that
    takes its place. `edits`: stored name -> edit, applied after any replacement. `origins`: stored name -> the module
    that edits it, for messages.
    """

    infos: dict[str, TensorInfo]
    aliases: dict[str, str]
    replaced: dict[str, str] = field(default_factory=dict)
    edits: dict[str, Edit] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def place_saved(
    plan: Plan,
    saved: Mapping[str, str],
    *,
    base: Checkpoint,
    tensors: Checkpoint,
    config: AdapterConfig,
    names: BaseNames,
) -> list[str]:
    """Enters the tensors `saved` (name -> name in the adapter file) into `plan`; returns what does not fit.

    Modules that were trained in full are copies: they leave any tie, unless all the names tied were saved as one
    (ensure_weight_tying). Other tensors, such as biases, were loaded into the base's own and change all its names.
    """
    faults: list[str] = []
    places: dict[str, str] = {}
    for name in saved:
        found = names.find(name)
        if found is not None:
            if found in places:
                faults.append(f"{name}: takes the place of the same tensor of the base as {places[found]} ({found})")
            places[found] = name
        elif config.is_saved_module(name):
            # A head that the base does not have at all (a bare encoder): it joins the checkpoint.
            plan.infos[name] = tensors.info(saved[name])
            plan.replaced[name] = saved[name]
        else:
            faults.append(f"{name}: the base has no such tensor")
    copies = [found for found, name in places.items() if config.is_saved_module(name)]
    whole = _tied_throughout(copies, places, base) if config.keeps_ties else set()
    _untie(plan, base, [found for found in copies if base.stored(found) not in whole])
    for found, name in places.items():
        stored = found if found in plan.infos else base.stored(found)
        info = tensors.info(saved[name])
        # PEFT loads saved tensors into the base's parameters, hence the base's dtype.
        plan.infos[stored] = TensorInfo(base.info(found).dtype, info.shape)
        plan.replaced[stored] = saved[name]
    return faults


def _tied_throughout(copies: Collection[str], places: Collection[str], base: Checkpoint) -> set[str]:
    """The tensors of the base that were copied and all of whose names were saved."""
    groups: dict[str, list[str]] = {}
    for alias, target in base.aliases.items():
        groups.setdefault(target, [target]).append(alias)
    copied = {base.stored(name) for name in copies}
    return {target for target, group in groups.items() if target in copied and all(name in places for name in group)}


def _untie(plan: Plan, base: Checkpoint, copies: Collection[str]) -> None:
    """Copies are tensors of their own; names tied to one that are not copied along keep the base's tensor."""
    for name in copies:
        if plan.aliases.pop(name, None) is not None:
            plan.infos[name] = base.info(name)
    for name in copies:
        left = sorted(alias for alias, target in plan.aliases.items() if target == name)
        if not left:
            continue
        holder = left[0]
        del plan.aliases[holder]
        plan.aliases.update(dict.fromkeys(left[1:], holder))
        plan.infos[holder] = base.info(name)
