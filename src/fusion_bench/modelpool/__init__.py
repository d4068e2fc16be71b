"""The registry of model-pool types, by the `type` of a pool's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusion_bench.build import build
from fusion_bench.errors import ConfigError, unknown

if TYPE_CHECKING:
    from fusion_bench.modelpool.base import ModelPool


def pool_types() -> dict[str, type]:
    """Type -> the frozen dataclass whose fields are its keys."""
    from fusion_bench.modelpool.sources import EmbeddedPool, FolderPool, ListedPool, TaskVectorsPool

    return {"folder": FolderPool, "models": ListedPool, "embedded": EmbeddedPool, "task_vectors": TaskVectorsPool}


def open_modelpool(spec: Mapping[str, Any], where: str = "modelpool") -> ModelPool:
    """The pool that a configuration describes. Members are opened later, when they are first looked at.

    Raises ConfigError for an unknown type, key or member, and for a folder that holds no pool.
    """
    types = pool_types()
    kind = spec.get("type", "models")
    if kind not in types:
        raise ConfigError(unknown("type", str(kind), types, where=f"{where}.type"))
    source: Any = build(types[kind], {key: value for key, value in spec.items() if key != "type"}, where)
    pool: ModelPool = source.open()
    return pool


def __getattr__(name: str) -> Any:
    if name == "ModelPool":
        from fusion_bench.modelpool.base import ModelPool

        return ModelPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
