"""The matrix that disturbs the tasks least, found by gradient descent or exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.method.spectral import Deltas, SpectralMethod, interference_buffers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Wudi(SpectralMethod):
    r"""$\min_\Delta \sum_i \|(\Delta - \tau_i) \tau_i^\top\|_F^2 / \|\tau_i\|_F^2$ for each matrix.

    With $n_i = \|\tau_i\|_F^2$ the gradient is $2 (\Delta C - D)$, $C = \sum \tau_i^\top \tau_i / n_i$ and $D = \sum
    \tau_i \tau_i^\top \tau_i / n_i$, two running sums. `solver=exact` gives $\Delta C = D$ of least norm.
    Directions in which $C$ is below $10^{-10}$ of its largest eigenvalue keep the sum, since nothing of the minimum is
    left there but rounding. `solver=adam` is the published procedure, with which published results were made: from
    $\Delta = \sum_i \tau_i$ a fixed number of Adam steps (300 or 400), so that the result stays near the sum. It takes
    several hundred times as long. `exact` ignores the fields of the descent.

    Tasks with $n_i < 10^{-12}$ take no part; where all are such, and for tensors that are not matrices, the mean.

    Source: Whoever started the interference should end it, arXiv 2503.08099.
    """

    requirement = "hyperparameter search"
    source = "WUDI-Merging, arXiv 2503.08099"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"solver": "exact"},
        "equal": {"solver": "exact"},
    }

    solver: Literal["adam", "exact"] = hyper("exact", "the minimum itself, or the published descent")
    iterations: int = hyper(300, "steps of adam", low=0)
    learning_rate: float = hyper(1e-5, "step size of adam", above=0.0)

    def buffers(self, outputs: int, inputs: int, models: int) -> float:
        return interference_buffers(outputs, inputs)

    def combine(self, deltas: Deltas) -> torch.Tensor:
        import torch

        from fusion_bench.ops import interference

        sums = interference.moments(deltas)
        if not sums.active:
            return interference.begun(sums, "mean")
        if self.solver == "adam":
            dtype = torch.float64 if deltas.exact else torch.float32
            return interference.descended(sums, dtype, self.iterations, self.learning_rate)
        values, vectors = interference.spectrum(sums)
        factors = torch.ones_like(values)[values > 1e-10 * values[0]]
        return interference.moved(sums, interference.begun(sums, "sum"), values, vectors, factors)
