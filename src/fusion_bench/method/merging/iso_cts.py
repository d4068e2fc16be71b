"""Directions common to all tasks and directions of each task, made orthogonal, with one singular value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs
from fusion_bench.method.spectral import Deltas, SpectralMethod, decomposition

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class IsoCts(SpectralMethod):
    r"""Iso-C on a common subspace joined by one of every task (Iso-CTS).

    Of $r = \min(out, in)$ directions, $s = N \,\mathrm{round}((r - \lfloor f r \rfloor) / N)$ belong to the tasks
    (halves round to even; where that exceeds $r$, the largest multiple of $N$ that does not), $c = r - s$ are common.
    $U_c$: the $c$ leading left vectors of $\sum_i \tau_i$. Each task gives the $s / N$ leading components of
    $\tau_i - U_c U_c^\top \tau_i$; those below $10^{-6}$ of $\sigma_{max}(\tau_i)$ are null, measured against the task
    since a residual may be rounding alone. Task parts, then the common part, are stacked, both sides made orthogonal
    (polar factors), and every singular value is the mean of the kept ones.

    $c = r$ is Iso-C. `rank` as there. The models are read twice. Published numbers of the authors take λ = 1.5.

    Source: No task left behind, arXiv 2502.04959.
    """

    requirement = "hyperparameter search"
    source = "Isotropic merging, arXiv 2502.04959"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": None, "equal": None}

    common_space_fraction: float = hyper(0.8, "share f of the directions that are common", low=0.0, high=1.0)
    rank: Literal["numerical", "full"] = hyper("numerical", "directions that count: those that are not null, or all")

    def passes(self, inputs: Inputs) -> int:
        return 2

    def buffers(self, outputs: int, inputs: int, models: int) -> float:
        # The sum; both stacks, their parts and a residual in float64; a decomposition.
        return 2 + 6 + 4 * min(outputs, inputs) / max(outputs, inputs) + decomposition(outputs, inputs)

    def split(self, rank: int, models: int) -> int:
        """How many of `rank` directions belong to the tasks."""
        asked = round((rank - int(self.common_space_fraction * rank)) / models) * models
        return asked if asked <= rank else rank // models * models

    def combine(self, deltas: Deltas) -> torch.Tensor:
        import torch

        from fusion_bench.ops import spectral

        exact, null = deltas.exact, spectral.NULL if self.rank == "numerical" else -1.0
        rank = min(deltas.shape)
        own = self.split(rank, len(deltas))
        common = spectral.factors(spectral.total(deltas), rank - own, null, exact=exact)
        parts = []
        for delta in deltas if own else ():
            length = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
            rest = delta.double() - common.left @ spectral.product(delta.T, common.left).T
            part = spectral.factors(rest, own // len(deltas), null, length / rank**0.5, exact)
            # The Frobenius norm bounds the largest singular value, which is worked out only where it decides.
            if null >= 0 and len(part.values) and float(part.values[-1]) < null * length:
                part = spectral.above(part, null * spectral.largest(delta))
            parts.append(part)
        parts.append(common)
        values = torch.cat([part.values for part in parts])
        if not len(values):
            return torch.zeros(deltas.shape, dtype=torch.float64, device=values.device)
        left = spectral.polar(torch.cat([part.left for part in parts], 1), null, exact)[0].mul_(values.mean())
        right = spectral.polar(torch.cat([part.right for part in parts], 1), null, exact)[0]
        return left @ right.T
