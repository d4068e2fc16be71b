"""Drop the largest and the small changes of every tensor, merge the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Scan, Slot
from fusion_bench.method.wrapping import DeltaWrapper

if TYPE_CHECKING:
    import torch

    from fusion_bench.method.trimming import Trim


@dataclass(frozen=True)
class Breadcrumbs(DeltaWrapper):
    r"""$\tilde\tau_i = m_i \odot \tau_i$, merged by `inner`; $m_i$ drops both tails of the magnitudes of each tensor.

    Of n entries the $\lfloor \gamma n \rfloor$ largest are dropped as outliers, and of the others the
    $\lfloor d n \rfloor$ largest are kept, exactly; of equal magnitudes the lower flat index counts as the larger.
    Where fewer than that are left, fewer outliers are dropped; density 1 changes nothing. Nothing is rescaled.
    Small tensors are decided in the one extra read of the models, larger ones after a sampled pass.

    Source: Model Breadcrumbs, arXiv 2312.06795.
    """

    requirement = "hyperparameter search"
    source = "Model Breadcrumbs, arXiv 2312.06795"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"density": 1.0, "inner": {"name": "task_arithmetic", "scaling_factor": 1.0}},
        "equal": {"density": 1.0, "inner": {"name": "task_arithmetic", "scaling_factor": "1/N"}},
    }

    density: float = hyper(0.5, "kept share of the entries of a tensor; 1 keeps all", low=0.0, high=1.0)
    gamma: float = hyper(0.01, "share of the largest entries that is dropped", low=0.0, high=1.0)

    def passes(self, inputs: Inputs) -> int:
        return self.inner.passes(inputs) + (self.density < 1)

    def counts(self, entries: int) -> tuple[int, int]:
        """How many of a tensor's entries go as outliers, and how many stay."""
        keep = int(self.density * entries)
        return min(int(self.gamma * entries), entries - keep), keep

    def prepare(self, inputs: Inputs, scan: Scan) -> Trim | None:
        if self.density >= 1:
            return None
        from fusion_bench.method.trimming import Trim, tensor_cuts

        # Two cuts a model: below the outliers (even channels), below all that stays (odd ones).
        keeps: dict[tuple[int, str], int | None] = {}
        for name in inputs.alignment.floating:
            entries = inputs.alignment.infos[name].numel
            outliers, keep = self.counts(entries)
            whole = outliers + keep == entries
            for model in range(len(inputs.models)):
                keeps[2 * model, name] = outliers or None
                keeps[2 * model + 1, name] = None if whole else keep and outliers + keep
        return Trim(selection=tensor_cuts(inputs, scan, _twice, keeps), per_tensor=True)

    def edit(self, slot: Slot, model: int, delta: torch.Tensor, state: Trim | None) -> torch.Tensor:
        if state is None:
            return delta
        from fusion_bench.ops import select

        kept = state.apply(slot, 2 * model + 1, delta)
        outliers = state.cut(slot, 2 * model)
        return kept if outliers is None else select.without(kept, outliers[0], outliers[1] or 0)


def _twice(slot: Slot) -> Iterator[tuple[int, torch.Tensor]]:
    from fusion_bench.method.trimming import magnitudes

    for model, values in magnitudes(slot):
        yield 2 * model, values
        yield 2 * model + 1, values
