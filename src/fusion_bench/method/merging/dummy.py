"""No fusion: the base, or the first model where there is no base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.method.base import CheckpointMethod, Inputs

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint


@dataclass(frozen=True)
class Dummy(CheckpointMethod):
    """Returns the pre-trained model unchanged, or the first model of a pool without one: the row to compare with.

    Source: FusionBench, arXiv 2406.03280.
    """

    source = "FusionBench, arXiv 2406.03280"
    symmetric = False
    reads_models = False
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": None, "equal": None}

    def transform(self, inputs: Inputs) -> Checkpoint:
        return inputs.reference
