"""What a fusion returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint


@dataclass(frozen=True)
class Merged:
    """One checkpoint for all tasks."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class PerTask:
    """One checkpoint a task: the task must be known when the model is used."""

    checkpoints: Mapping[str, Checkpoint]


@dataclass(frozen=True)
class Members:
    """Several models that stay apart, by name."""

    checkpoints: Mapping[str, Checkpoint]


@dataclass(frozen=True)
class Built:
    """A checkpoint whose forward pass is rebuilt by the registered `wrapper`."""

    checkpoint: Checkpoint
    wrapper: str


Fused = Merged | PerTask | Members | Built
