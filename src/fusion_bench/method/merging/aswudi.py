"""The matrix that disturbs the tasks least, in as many directions as the spectrum suggests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.method.spectral import Deltas, SpectralMethod, interference_buffers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Aswudi(SpectralMethod):
    r"""The closed form of SWUDI with $f = 1$ on the leading directions of $C$, $f = 0$ on the others.

    $\Delta = \bar\theta - \bar\theta V \mathrm{diag}(f) V^\top + D V \mathrm{diag}(f / \ell) V^\top$. Symbols as in
    SWUDI. `directions=effective` takes $\lceil (\sum \sqrt\ell)^2 / \sum \ell \rceil$ of them, $\ell \ge 10^{-8}$.
    `gavish_donoho`, for language models that were tuned in full, takes those with $\sqrt\ell$ above $\omega(\beta)$
    times the median of $\sqrt\ell$, $\omega(\beta) = 0.56 \beta^3 - 0.95 \beta^2 + 1.82 \beta + 1.43$. The definition
    leaves $\beta$ open; here it is that of the stacked $\tau_i$, $N \cdot out$ x $in$, whose singular values
    $\sqrt\ell$ are: the shorter side over the longer one. Directions at the floor $\ell \le 10^{-8}$ never move:
    there $D / \ell$ is rounding.

    Tasks with $\|\tau_i\|_F^2 < 10^{-12}$ take no part; where all are such, and for tensors that are not matrices, the
    mean.

    Source: the objective is that of WUDI-Merging, arXiv 2503.08099. The closed form has no arXiv id known to us.
    """

    source = "closed form of WUDI-Merging, arXiv 2503.08099"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": {"init": "mean"}}

    directions: Literal["effective", "gavish_donoho"] = hyper("effective", "how the number of directions is found")
    init: Literal["sum", "mean", "zero"] = hyper("sum", "what the other directions keep")

    def buffers(self, outputs: int, inputs: int, models: int) -> float:
        return interference_buffers(outputs, inputs)

    def combine(self, deltas: Deltas) -> torch.Tensor:
        import torch

        from fusion_bench.ops import interference

        sums = interference.moments(deltas)
        if not sums.active:
            return interference.begun(sums, "mean")
        values, vectors = interference.spectrum(sums)
        moving = values[: self._count(values, sums.active * deltas.shape[0])]
        factors = torch.ones_like(moving[moving > interference.FLOOR])
        return interference.moved(sums, interference.begun(sums, self.init), values, vectors, factors)

    def _count(self, values: torch.Tensor, rows: int) -> int:
        from fusion_bench.ops import interference

        lengths = values.clamp(min=interference.FLOOR).sqrt()
        if self.directions == "effective":
            return math.ceil(float(lengths.sum()) ** 2 / float(lengths.square().sum()))
        beta = min(rows, len(values)) / max(rows, len(values))
        threshold = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        return int((lengths > threshold * float(lengths.quantile(0.5))).sum())
