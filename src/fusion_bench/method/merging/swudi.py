"""Part of the way to the matrix that disturbs the tasks least, in closed form."""

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
class Swudi(SpectralMethod):
    r"""$\Delta = \bar\theta - \bar\theta V \mathrm{diag}(f) V^\top + D V \mathrm{diag}(f / \ell) V^\top$.

    The objective of WUDI, solved direction by direction instead of descended: $n_i = \|\tau_i\|_F^2$, $C = \sum
    \tau_i^\top \tau_i / n_i = V \mathrm{diag}(\ell) V^\top$ (in x in), $D = \sum \tau_i \tau_i^\top \tau_i / n_i$,
    $\bar\theta$ by `init`. $f = 1 - e^{-\ell t}$, a descent for the time $t$, on the $\lceil r \cdot in \rceil$ leading
    directions, else 0. The product $r \cdot in$ is taken in floating point. Where $\ell \le 10^{-8}$, the floor of the
    definition, $f = 0$: there $D / \ell$ is rounding. Published pairs $(t, r)$: (1300, 0.65) for CLIP, (300, 0.85) for
    language models.

    One model gives that model for every $f$; $N$ equal ones do with `init=mean`. Tasks with $n_i < 10^{-12}$ take no
    part; where all are such, and for tensors that are not matrices, the mean.

    Source: the objective is that of WUDI-Merging, arXiv 2503.08099. The closed form has no arXiv id known to us.
    """

    requirement = "hyperparameter search"
    source = "closed form of WUDI-Merging, arXiv 2503.08099"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": {"init": "mean"}}

    time: float = hyper(300.0, "t, how long the descent goes on", low=0.0)
    fraction: float = hyper(0.85, "r, share of the directions that move", low=0.0, high=1.0)
    init: Literal["sum", "mean", "zero"] = hyper("sum", "where the descent begins")

    def buffers(self, outputs: int, inputs: int, models: int) -> float:
        return interference_buffers(outputs, inputs)

    def combine(self, deltas: Deltas) -> torch.Tensor:
        from fusion_bench.ops import interference

        sums = interference.moments(deltas)
        if not sums.active:
            return interference.begun(sums, "mean")
        values, vectors = interference.spectrum(sums)
        moving = values[: math.ceil(self.fraction * len(values))]
        moving = moving[moving > interference.FLOOR]
        factors = moving.mul(-self.time).expm1().neg()
        return interference.moved(sums, interference.begun(sums, self.init), values, vectors, factors)
