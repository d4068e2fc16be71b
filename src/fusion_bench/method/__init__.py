"""The registry of fusion algorithms: one file each, file name = key on the command line = class name in snake case."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from fusion_bench.errors import ConfigError, unknown
from fusion_bench.method.base import ModelFusionAlgorithm

_KINDS = ("ensembling", "merging", "mixing")


@cache
def method_modules() -> dict[str, str]:
    """Key -> module of every algorithm, sorted by key; imports none of them."""
    here = Path(__file__).parent
    found = {
        file.stem: f"{__name__}.{kind}.{file.stem}"
        for kind in _KINDS
        for file in (here / kind).glob("*.py")
        if not file.stem.startswith("_")
    }
    return dict(sorted(found.items()))


@cache
def method_class(key: str) -> type[ModelFusionAlgorithm]:
    """The class of the algorithm `key`; ConfigError with the nearest right key where there is none. No torch."""
    modules = method_modules()
    if key not in modules:
        raise ConfigError(unknown("method", key, modules))
    module = importlib.import_module(modules[key])
    classes = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, ModelFusionAlgorithm) and value.__module__ == module.__name__
    ]
    assert len(classes) == 1, f"{module.__name__} must define exactly one algorithm"
    return classes[0]


def class_names() -> dict[str, str]:
    """Class name -> key: ``TiesMerging`` -> ``ties_merging``."""
    return {"".join(part.capitalize() for part in key.split("_")): key for key in method_modules()}


def __getattr__(name: str) -> Any:
    key = class_names().get(name)
    if key is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return method_class(key)


def __dir__() -> list[str]:
    return sorted([*globals(), *class_names()])
