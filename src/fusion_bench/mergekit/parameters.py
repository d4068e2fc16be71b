"""The method that holds for each tensor: parameters looked up level by level, then translated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import ConfigError
from fusion_bench.mergekit.document import Document, Parameters, Slice, Source
from fusion_bench.mergekit.methods import KINDS, REQUIRED, MergeMethod
from fusion_bench.mergekit.translations import Chosen

if TYPE_CHECKING:
    from fusion_bench.method.assigned import Assigned
    from fusion_bench.method.base import TensorMethod

_SHOWN = 10


@dataclass(frozen=True)
class Place:
    """A tensor of the result: its name, its depth in its slice, and what it is called in each model."""

    name: str
    depth: float
    sources: tuple[str, ...]


def assign(document: Document, part: Slice, models: Sequence[Source], based: bool, places: Iterable[Place]) -> Assigned:
    """The method for each tensor of a slice, over `models` (without the base, where the method has one: `based`).

    ConfigError lists parameters that are missing and values that the method does not take, with the first tensor
    that each is said of.
    """
    from fusion_bench.method.assigned import Assigned

    kind = KINDS[document.merge_method]
    known: dict[Any, TensorMethod | str] = {}
    methods: dict[str, TensorMethod] = {}
    faults: dict[str, str] = {}
    for place in places:
        values, missing = _values(document, part, models, kind, place)
        for fault in missing:
            faults.setdefault(fault, place.name)
        if missing:
            continue
        key = (tuple(values["shared"].items()), tuple(tuple(each.items()) for each in values["each"]))
        if key not in known:
            try:
                known[key] = kind.build(Chosen(values["shared"], tuple(values["each"]), based))
            except ConfigError as fault:
                known[key] = str(fault)
        found = known[key]
        if isinstance(found, str):
            faults.setdefault(f"{part.where}: {document.merge_method}: {found}", place.name)
        else:
            methods[place.name] = found
    if faults:
        lines = [f"{fault} (tensor {name})" for fault, name in faults.items()]
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise ConfigError("\n".join([*lines[:_SHOWN], *more]))
    return Assigned(methods=methods)


def _values(
    document: Document, part: Slice, models: Sequence[Source], kind: MergeMethod, place: Place
) -> tuple[dict[str, Any], list[str]]:
    """The values that hold for a tensor, and a sentence for each that is missing."""
    shared: dict[str, Any] = {}
    each: list[dict[str, Any]] = [{} for _ in models]
    missing: list[str] = []
    above = (part.parameters, document.parameters)
    for name, parameter in kind.parameters.items():
        if not parameter.each:
            shared[name] = _found(name, above, place.name, place.depth, parameter.default)
            if shared[name] is REQUIRED:
                missing.append(
                    f"parameters.{name} is missing: {document.merge_method} needs it. Give it for every tensor: a "
                    "filter list ends with {value: …} for the rest."
                )
            continue
        for values, source, called in zip(each, models, place.sources, strict=True):
            levels = (source.parameters, *above)
            values[name] = _found(name, levels, called, place.depth, parameter.default)
            if values[name] is REQUIRED:
                missing.append(_missing(document, source, name))
    return {"shared": shared, "each": each}, missing


def _found(name: str, levels: Iterable[Parameters], tensor: str, depth: float, default: Any) -> Any:
    """The value of the first level that has one for the tensor."""
    for level in levels:
        value = level[name].at(tensor, depth) if name in level else None
        if value is not None:
            return value
    return default


def _missing(document: Document, source: Source, name: str) -> str:
    method = document.merge_method
    if source.where == "base_model":
        return (
            f"{name} is missing for base_model ({source.model}), which is an ordinary input of {method}: "
            f"list it under models with a {name}, give parameters.{name} for all, or leave base_model out"
        )
    return f"{source.where}.parameters.{name} is missing ({source.model}): {method} needs it for every tensor"


def depths(layers: Mapping[str, tuple[int, int]], names: Iterable[str], offset: int = 0) -> dict[str, float]:
    """Name -> depth: layer i of L at i/(L-1), all outside of layers at 0. `layers`: name -> (number, layers)."""
    found = {}
    for name in names:
        index, count = layers.get(name, (0, 1))
        found[name] = (index - offset) / (count - offset - 1) if count - offset > 1 and name in layers else 0.0
    return found
