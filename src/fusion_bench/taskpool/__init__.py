"""Task pools, opened by the type that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from fusion_bench.build import build
from fusion_bench.errors import ConfigError, unknown
from fusion_bench.taskpool.base import TaskPool

__all__ = ["TYPES", "TaskPool", "open_taskpool"]


def _dummy() -> type[TaskPool]:
    from fusion_bench.taskpool.dummy import DummyTaskPool

    return DummyTaskPool


def _glue_text_generation() -> type[TaskPool]:
    from fusion_bench.taskpool.text_generation import GlueTextGeneration

    return GlueTextGeneration


def _image_classification() -> type[TaskPool]:
    from fusion_bench.taskpool.image_classification import ImageClassification

    return ImageClassification


# Closed: a configuration names one of these words, never an importable path.
TYPES: Final[Mapping[str, Callable[[], type[TaskPool]]]] = {
    "dummy": _dummy,
    "glue_text_generation": _glue_text_generation,
    "image_classification": _image_classification,
}


def open_taskpool(spec: Mapping[str, Any]) -> TaskPool:
    """The task pool that `spec` describes: its `type` beside the fields of that type.

    Raises ConfigError, naming the nearest right word, for an unknown type, field or value. Imports no torch.
    """
    given = spec.get("type")
    if given is None:
        raise ConfigError(f"taskpool.type is missing. Accepted: {', '.join(TYPES)}.")
    if given not in TYPES:
        raise ConfigError(unknown("type", str(given), TYPES, where="taskpool"))
    return build(TYPES[given](), spec, where="taskpool")
