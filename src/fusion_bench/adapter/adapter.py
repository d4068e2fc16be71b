"""An adapter as a value: what it changes of its base, in factors, vectors or whole tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fusion_bench.checkpoint.base import Checkpoint, LowRank, Scale

if TYPE_CHECKING:
    import torch

Rank = int | float | None
"""A rank; a share of the squared norm that is to be kept (a float up to 1); None keeps everything."""

Others = Literal["refuse", "drop", "save"]
"""What becomes of changes that no factors can hold, as of norms: an error, nothing, whole tensors in the adapter."""


@dataclass(frozen=True)
class Target:
    """A weight of the base that adapters change: its stored name, the module as PEFT calls it, its shape.

    `embedding`: a table that is looked up; `feedforward`: an (IA)^3 vector scales the inputs, not the outputs.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    embedding: bool = False
    feedforward: bool = False


@dataclass(frozen=True)
class Adapter:
    """One adapter over `base`; `save_adapter` writes it for PEFT.

    By the stored name of the base's tensor: `factors` of LoRA (``scale`` 1: A and B are the whole change), `vectors` of
    (IA)^3, `saved` tensors in full. `norms`: squared Frobenius norms of each change as it is kept and as the method
    gave it. `remarks`: what a reader must know and cannot see. `reference`: name and revision of the base on the Hub,
    None for a local one.
    """

    base: Checkpoint
    targets: Mapping[str, Target]
    factors: Mapping[str, LowRank] = field(default_factory=dict)
    vectors: Mapping[str, Scale] = field(default_factory=dict)
    saved: Mapping[str, torch.Tensor] = field(default_factory=dict)
    norms: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    task_type: str | None = None
    reference: tuple[str, str | None] | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """Tensor -> the rank of its factors."""
        return {name: factors.A.shape[0] for name, factors in self.factors.items()}

    @property
    def kept(self) -> dict[str, float]:
        """Tensor -> the share of the squared norm of its change that its factors keep; 1 where nothing changes."""
        return {name: kept / given if given else 1.0 for name, (kept, given) in self.norms.items()}

    @property
    def share(self) -> float:
        """The share of the squared norm of all changes that is kept."""
        given = sum(given for _, given in self.norms.values())
        return sum(kept for kept, _ in self.norms.values()) / given if given else 1.0


def kept_remark(adapter: Adapter, rank: Rank) -> list[str]:
    """A sentence on what a lower rank leaves of the changes; none where nothing is lost."""
    kept = adapter.kept
    if not kept or min(kept.values()) > 1 - 1e-9:
        return []
    worst = min(kept, key=lambda name: kept[name])
    return [
        f"rank={rank}: the adapter keeps {_percent(adapter.share)} of the squared norm of what the method changes, "
        f"least {_percent(kept[worst])} in {worst}; the fused model is the base with this adapter"
    ]


def _percent(share: float) -> str:
    return f"{min(share, 0.99999):.3%}" if share > 0.999 else f"{share:.1%}"
