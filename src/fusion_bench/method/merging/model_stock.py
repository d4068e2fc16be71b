"""Averages near the centre of fine-tuned models, from their angles alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelStock(TensorMethod):
    r"""$\theta = t\,\bar\theta + (1-t)\,\theta_0$ with $t = \frac{N c}{1 + (N-1) c}$, $c$ the mean cosine of all pairs
    of task vectors $\tau_i = \theta_i - \theta_0$, for each tensor (or row, `filter_wise`).

    Equal task vectors ($c = 1$) give the mean, orthogonal ones ($c = 0$) the base; $c < 0$ leads away from the models,
    which is reported unless it is in rows. Nothing is to be tuned. A denominator that vanishes gives the base. In a
    cosine the product of the norms counts as `floor` at least: very small task vectors count as if they were nearly
    orthogonal, as in another implementation; 0 takes the true cosine. A row is all that has one first index; a tensor
    of one dimension is one row. Two passes; one with `filter_wise`. Errors: fewer than two models.

    Source: Model Stock, arXiv 2403.19522.
    """

    source = "Model Stock, arXiv 2403.19522"
    needs_base = True
    model_counts: ClassVar[tuple[int, int | None]] = (2, None)
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": None, "equal": {}}

    filter_wise: bool = hyper(False, "an angle for each row instead of one for the tensor")
    floor: float = hyper(1e-6, "the least value of the product of two norms in a cosine", low=0.0)

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        if not self.filter_wise:
            return "element"
        return "row" if len(inputs.alignment.infos[name].shape) < 3 else "tensor"

    def passes(self, inputs: Inputs) -> int:
        return 1 if self.filter_wise else 2

    def workspace(self, name: str, inputs: Inputs) -> float:
        return len(inputs.models) + 7.0

    def survey(self, inputs: Inputs, scan: Scan) -> dict[str, float]:
        if self.filter_wise:
            return {}
        from fusion_bench.method.gram import taken, tensor_grams
        from fusion_bench.ops import spherical

        grams = tensor_grams(scan, taken("deltas"))
        return {name: float(spherical.stock_ratio(gram, self.floor)) for name, gram in grams.items()}

    def remarks(self, inputs: Inputs, state: dict[str, float]) -> list[str]:
        away = [name for name, ratio in state.items() if ratio < 0]
        if not away:
            return []
        shown = ", ".join(f"{name} ({state[name]:.3f})" for name in away[:5])
        more = f" and {len(away) - 5} more" if len(away) > 5 else ""
        return [f"task vectors point away from each other on average (t < 0) in {shown}{more}"]

    def merge(self, slot: Slot, state: dict[str, float]) -> torch.Tensor:
        from fusion_bench.method import gram
        from fusion_bench.ops import linear, spherical

        count = len(slot.model_names)
        if not self.filter_wise:
            return linear.shifted(slot.base, linear.mean(slot.deltas, count), state[slot.name])

        def factors(grams: torch.Tensor) -> torch.Tensor:
            return (spherical.stock_ratio(grams, self.floor) / count)[..., None].expand(*grams.shape[:-1])

        return gram.combine_pieces(slot, "deltas", factors)
