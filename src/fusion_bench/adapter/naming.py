"""The settings by which PEFT finds the modules of an adapter again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

from fusion_bench.adapter.adapter import Adapter, Target
from fusion_bench.checkpoint.base import Scale
from fusion_bench.errors import ConfigError

PREFIX = "base_model.model."


def settings(adapter: Adapter) -> dict[str, Any]:
    """adapter_config.json without the name of the base."""
    modules = {target.module for target in adapter.targets.values()}
    known = _modules(adapter) | modules
    saved, _ = saved_modules(adapter)
    common: dict[str, Any] = {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": sorted(saved) or None,
        "revision": None,
        "task_type": adapter.task_type,
    }
    if adapter.vectors:
        forward = {t.module for name, t in adapter.targets.items() if t.feedforward}
        flipped = any(_turned(target, adapter.vectors[name]) for name, target in adapter.targets.items())
        return common | _gated(modules, forward, known) | {"peft_type": "IA3", "fan_in_fan_out": flipped}
    ranks = {adapter.targets[name].module: rank for name, rank in adapter.ranks.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    pattern = {"^" + re.escape(module): rank for module, rank in sorted(ranks.items()) if rank != usual}
    turned = [name for name, factors in adapter.factors.items() if factors.transposed]
    return common | {
        "alpha_pattern": pattern,
        "bias": "all" if any(_is_bias_of(name, modules, adapter) for name in adapter.saved) else "none",
        "fan_in_fan_out": any(not adapter.targets[name].embedding for name in turned),
        "init_lora_weights": True,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": pattern,
        "target_modules": _named(modules, known) if modules else [],
        "use_dora": False,
        "use_rslora": False,
    }


def _gated(modules: set[str], forward: set[str], known: set[str]) -> dict[str, Any]:
    """Modules with vectors and those whose inputs are scaled; PEFT tells the latter by the bare ends of names."""
    for found, chosen in ((_leaves(modules), _leaves(forward)), (sorted(modules), sorted(forward))):
        ends = {module for module in modules if any(module.endswith(end) for end in chosen)}
        if _matched(found, known) == modules and ends == forward:
            return {"target_modules": found, "feedforward_modules": chosen}
    return {"target_modules": _exact(modules), "feedforward_modules": _exact(forward) if forward else []}


def _turned(target: Target, vector: Scale) -> bool:
    """Whether the base stores the weight as in x out: the side that the vector scales tells."""
    axis = next((axis for axis, length in enumerate(vector.factor.shape) if length > 1), 0)
    return len(target.shape) == 2 and vector.factor.numel() > 1 and axis == (0 if target.feedforward else 1)


def _named(modules: set[str], known: set[str]) -> list[str] | str:
    """The shortest of: last parts of names, full names, a pattern, that PEFT matches with these modules alone."""
    for found in (_leaves(modules), sorted(modules)):
        if _matched(found, known) == modules:
            return found
    return _exact(modules)


def _leaves(modules: Iterable[str]) -> list[str]:
    return sorted({module.rpartition(".")[2] for module in modules})


def _matched(keys: Collection[str], known: set[str]) -> set[str]:
    return {module for module in known if module in keys or any(module.endswith("." + key) for key in keys)}


def _exact(modules: set[str]) -> str:
    return "|".join(re.escape(module) for module in sorted(modules))


def _modules(adapter: Adapter) -> set[str]:
    """Every module of the base that has a weight, as PEFT names it."""
    names = (*adapter.base, *adapter.base.aliases)
    place = placed(adapter)
    own = {stored: target.module for stored, target in adapter.targets.items()}
    return {own.get(name) or place(name).removesuffix(".weight") for name in names if name.endswith(".weight")}


def placed(adapter: Adapter) -> Callable[[str], str]:
    """The function from a name in the base to the name in PEFT's model: one of them may carry a further prefix."""
    more = less = ""
    for name, target in adapter.targets.items():
        own = name.removesuffix(".weight")
        if target.module != own:
            if target.module.endswith("." + own):
                more = target.module[: -len(own)]
            elif own.endswith("." + target.module):
                less = own[: -len(target.module)]
            break
    return lambda name: more + name.removeprefix(less)


def saved_modules(adapter: Adapter) -> tuple[set[str], dict[str, str]]:
    """The modules to be saved in full, and name in the file -> tensor of the base (or of `adapter.saved`).

    PEFT saves all parameters of such a module, under every name where it is tied, and takes a name for any module that
    ends so. Biases of modules with factors stand beside them. ConfigError for a tensor that has no module of its own.
    """
    place = placed(adapter)
    targets = {target.module for target in adapter.targets.values()}
    names: dict[str, str] = {}
    tied: dict[str, list[str]] = {}
    for alias, stored in adapter.base.aliases.items():
        tied.setdefault(stored, []).append(alias)
    wanted: set[str] = set()
    for name in adapter.saved:
        for each in (name, *tied.get(name, ())):
            module = place(each).rpartition(".")[0]
            if _is_bias_of(each, targets, adapter):
                names[f"{PREFIX}{module}.base_layer.bias"] = each
            elif not module or any(target == module or target.startswith(module + ".") for target in targets):
                raise ConfigError(
                    f"adapter_others=save: {each!r} has no module of its own beside the factors, so PEFT cannot save "
                    "it. Take adapter_others=drop, or save_model."
                )
            else:
                wanted.add(module)
    every = {place(name): name for name in (*adapter.base, *adapter.base.aliases)}
    owners = {name.rpartition(".")[0] for name in every}
    wanted |= {owner for owner in owners if any(owner.endswith(module) for module in wanted)}
    for name, source in every.items():
        if name.rpartition(".")[0] in wanted:
            names[PREFIX + name] = source
    return wanted, names


def _is_bias_of(name: str, targets: Collection[str], adapter: Adapter) -> bool:
    return name.endswith(".bias") and placed(adapter)(name).removesuffix(".bias") in targets


def file_name(target: Target, role: str) -> str:
    """The name in the file of a part of an adapted module: A, B or the vector."""
    if role == "vector":
        return f"{PREFIX}{target.module}.ia3_l"
    return f"{PREFIX}{target.module}." + (f"lora_embedding_{role}" if target.embedding else f"lora_{role}.weight")
