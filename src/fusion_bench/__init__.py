"""Fusing fine-tuned neural networks, measuring what the fusion kept.

The public names are imported when they are first used: importing the package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ModelFusionAlgorithm": "fusion_bench.method.base",
    "TensorMethod": "fusion_bench.method.base",
    "CheckpointMethod": "fusion_bench.method.base",
    "FittedMethod": "fusion_bench.method.fitted",
    "TaskData": "fusion_bench.fitting",
    "Batch": "fusion_bench.fitting",
    "TensorData": "fusion_bench.tensor_data",
    "Merged": "fusion_bench.method.base",
    "ModelPool": "fusion_bench.modelpool.base",
    "open_modelpool": "fusion_bench.modelpool",
    "open_taskpool": "fusion_bench.taskpool",
    "Checkpoint": "fusion_bench.checkpoint.base",
    "open_checkpoint": "fusion_bench.checkpoint.open",
    "open_member": "fusion_bench.modelpool.members",
    "save": "fusion_bench.checkpoint.writer",
    "verify": "fusion_bench.checkpoint.verify",
    "fuse": "fusion_bench.api",
    "Adapter": "fusion_bench.adapter.adapter",
    "fuse_adapters": "fusion_bench.adapter.fuse",
    "extract_adapter": "fusion_bench.adapter.extract",
    "save_adapter": "fusion_bench.adapter.write",
    "Settings": "fusion_bench.settings",
    "Progress": "fusion_bench.progress",
    **dict.fromkeys(
        (
            "FusionError", "UserError", "ConfigError", "CheckpointError", "MissingModelError", "AlignmentError",
            "OutputError", "DataError", "NonFiniteError",
        ),
        "fusion_bench.errors",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name[:1].isupper():
        methods = importlib.import_module("fusion_bench.method")
        if name in methods.class_names():
            return getattr(methods, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    methods = importlib.import_module("fusion_bench.method")
    return sorted([*globals(), *_HOMES, *methods.class_names()])
