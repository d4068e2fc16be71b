"""Scale what another method merged by the depth of the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot
from fusion_bench.method.correcting import MergeWrapper
from fusion_bench.method.finite import require_finite

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Scales:
    """α as used, and the factor of every tensor in a block; other tensors have α."""

    alpha: float
    factors: Mapping[str, float]
    inner: Any


@dataclass(frozen=True)
class Lines(MergeWrapper):
    r"""$\Delta_l \leftarrow (\alpha + \beta\, l / (L - 1))\, \Delta_l$, $\Delta$ from `inner`, $l = 0 \ldots L - 1$.

    Parameters outside of blocks are multiplied by $\alpha$; a single block ($L = 1$) by $\alpha + \beta$; a model with
    several stacks of blocks (encoder and decoder) counts each for itself. $\Delta$ is what `inner` made, its own factor
    included: with $\lambda$ there and $\beta = 1$ the deepest block gets $\lambda$ more than the first one.
    `alpha` null: $(\|\sum_i \tau_i\|_1 / \|\Delta\|_1) / N$ over the whole model, for which the models are read twice
    more; $1 / N$ where $\Delta = 0$. To edit a single fine-tuned model take $\beta = 1 - \alpha$.

    Source: LiNeS, arXiv 2410.17146.
    """

    requirement = "hyperparameter search"
    source = "LiNeS, arXiv 2410.17146"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": None, "equal": None}

    alpha: float | None = hyper(None, "α, the factor of the first block; null: from the norms of the task vectors")
    beta: float = hyper(1.0, "β, what the factor grows by from the first block to the last")

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        return self.inner.granularity(name, inputs)

    def workspace(self, name: str, inputs: Inputs) -> float:
        return self.inner.workspace(name, inputs) + 2

    def passes(self, inputs: Inputs) -> int:
        return self.inner.passes(inputs) + (2 if self.alpha is None else 0)

    def survey(self, inputs: Inputs, scan: Scan) -> Scales:
        inner = self.inner.survey(inputs, scan)
        alpha = self._measured(scan, inner, len(inputs.models)) if self.alpha is None else self.alpha
        blocks = [name for name in inputs.alignment.floating if name in inputs.structure.blocks]
        return Scales(alpha, {name: alpha + self.beta * inputs.structure.depth(name) for name in blocks}, inner)

    def _measured(self, scan: Scan, inner: Any, models: int) -> float:
        import torch

        from fusion_bench.ops import linear

        def norms(slot: Slot) -> tuple[float, float]:
            finite = (require_finite(slot, model, delta) for model, delta in enumerate(slot.deltas))
            tasks = float(linear.total(finite).abs_().sum(dtype=torch.float64))
            return tasks, float((self.inner.merge(slot, inner) - slot.base).abs_().sum(dtype=torch.float64))

        found = scan(norms, "measuring task vectors")
        tasks, merged = sum(pair[0] for pair in found), sum(pair[1] for pair in found)
        return (tasks / merged if merged else 1.0) / models

    def merge(self, slot: Slot, state: Scales) -> torch.Tensor:
        from fusion_bench.ops import linear

        factor = state.factors.get(slot.name, state.alpha)
        merged = self.inner.merge(slot, state.inner)
        return merged if factor == 1 else linear.shifted(slot.base, merged - slot.base, factor)

    def remarks(self, inputs: Inputs, state: Scales) -> list[str]:
        own = [f"alpha is {state.alpha:.6g}, the factor of the last block {state.alpha + self.beta:.6g}"]
        if not state.factors:
            own = [f"the tensors' names show no blocks: every tensor has the factor alpha, {state.alpha:.6g}"]
        return own + self.inner.remarks(inputs, state.inner)
