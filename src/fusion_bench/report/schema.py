"""The report of a run: documented keys outside, everything about the run under one reserved key."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA = 1
RESERVED = ("model_info", "average", "average_of", "seen_average", "unseen_average", "run")

_PACKAGES = ("fusion-bench", "torch", "transformers", "peft", "datasets", "safetensors", "hydra-core", "numpy")

# The primary metric of a task is the first of these that its result holds.
METRICS = ("accuracy", "spearman_rho")


def report(info: Mapping[str, Any], results: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """``{"model_info": …, <task>: …, "average": …, "run": …}``; scores are fractions between 0 and 1."""
    return {"model_info": dict(info), **results, "run": {"schema": SCHEMA, **run}}


def tasks(results: Mapping[str, Any]) -> list[str]:
    """The task names of a report or of evaluation results, in order."""
    return [key for key in results if key not in RESERVED]


def primary(result: Mapping[str, Any]) -> float | None:
    """The score of one task as a fraction; None where the task failed."""
    return next((float(result[metric]) for metric in METRICS if result.get(metric) is not None), None)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_mb() -> float:
    """The largest resident size that this process has had, in MB (10^6 bytes)."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(size * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def average(results: Sequence[float]) -> float | None:
    """The unweighted mean; None of nothing."""
    return sum(results) / len(results) if results else None
