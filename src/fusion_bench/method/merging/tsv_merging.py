"""Leading singular vectors of every task, made orthogonal across tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.method.spectral import Deltas, SpectralMethod, decomposition

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TsvMerging(SpectralMethod):
    r"""TSV-M: $\Delta = U_\perp \,\mathrm{diag}(\sigma)\, V_\perp^\top$ of every task's leading singular directions.

    $\tau_i = U_i \Sigma_i V_i^\top$ gives its $k = \lfloor \min(out, in) / N \rfloor$ leading components; $U = [U_1
    \ldots U_N]$ and $V$ are stacked, and each is replaced by its polar factor, so that tasks no longer overlap.
    Components with $\sigma < 10^{-6} \sigma_{max}$ of their task are dropped first: their vectors are arbitrary.

    One model gives that model; $N$ equal ones give its truncation to rank $k$; a matrix with less than $N$ rows or
    columns gets the mean. Tensors that are not matrices get the mean; $\lambda$ scales both.

    Source: Task singular vectors, arXiv 2412.00081.
    """

    source = "TSV-Merge, arXiv 2412.00081"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": None}

    def buffers(self, outputs: int, inputs: int, models: int) -> float:
        # Both stacks in float64 and a decomposition.
        return 2 + 2 * min(outputs, inputs) / max(outputs, inputs) + decomposition(outputs, inputs)

    def combine(self, deltas: Deltas) -> torch.Tensor:
        import torch

        from fusion_bench.ops import linear, spectral

        count = min(deltas.shape) // len(deltas)
        if count == 0:
            return linear.mean(iter(deltas), len(deltas))
        stacks: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        done = 0
        for delta in deltas:
            part = spectral.factors(delta, count, exact=deltas.exact)
            if not stacks:
                stacks = [part.left.new_empty(side, count * len(deltas)) for side in deltas.shape]
            kept = len(part.values)
            stacks[0][:, done : done + kept] = part.left
            stacks[1][:, done : done + kept] = part.right
            values.append(part.values)
            done += kept
        sides = [stacks.pop(0)[:, :done] for _ in range(2)]
        left = spectral.polar(sides.pop(0), exact=deltas.exact)[0].mul_(torch.cat(values))
        right = spectral.polar(sides.pop(0), exact=deltas.exact)[0]
        return left @ right.T
