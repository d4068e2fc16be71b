"""The sum of the task vectors with all its singular values made equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.method.spectral import Deltas, SpectralMethod, decomposition

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class IsoC(SpectralMethod):
    r"""Iso-C: $\Delta = \bar\sigma\, U V^\top$ of $\sum_i \tau_i = U \Sigma V^\top$, $\bar\sigma$ the mean of $\Sigma$.

    The result has one repeated singular value and the nuclear norm of the sum; one model alone is changed by it, too.
    `rank=numerical` counts the directions with $\sigma \ge 10^{-6} \sigma_{max}$ alone. `rank=full` takes all
    $\min(out, in)$ directions and values, as published code does: on a sum of low rank, as of adapters, it fills the
    null directions with arbitrary ones. Both agree on sums of full rank. Published numbers of the authors take
    λ = 1.5. Tensors that are not matrices get the mean of $\tau_i$; $\lambda$ scales both.

    Source: No task left behind, arXiv 2502.04959.
    """

    requirement = "hyperparameter search"
    source = "Isotropic merging, arXiv 2502.04959"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": None, "equal": None}

    rank: Literal["numerical", "full"] = hyper("numerical", "directions that count: those that are not null, or all")

    def buffers(self, outputs: int, inputs: int, models: int) -> float:
        return 2 + decomposition(outputs, inputs)

    def combine(self, deltas: Deltas) -> torch.Tensor:
        from fusion_bench.ops import spectral

        null = spectral.NULL if self.rank == "numerical" else -1.0
        factor, values = spectral.polar(spectral.total(deltas), null, deltas.exact)
        return factor.mul_(values.mean()) if len(values) else factor
