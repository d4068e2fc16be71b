"""Linear layers merged by regression on what each model's layer is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.method.solved_layers import Found, SolvedLayers, Weights

if TYPE_CHECKING:
    import torch

    from fusion_bench.statistics import Statistics


@dataclass(frozen=True)
class SolvedRegression(SolvedLayers):
    r"""$W^\top = (\sum \tilde G_i)^{-1} \sum \tilde G_i W_i^\top$ with input Grams, off-diagonals times `ratio`.

    Both sums run over the models: one weight and one Gram are held beside them.
    """

    source = "RegMean, arXiv 2212.09849"

    ratio: float = hyper(1.0, "what entries off the diagonal are multiplied by")

    def buffers(self, width: int, outputs: int, models: int) -> float:
        # float64: weight, right side, mean, product, solution; Gram as read and widened, reduced, sum, ridged, factor.
        return 10.0 * width * outputs + 11.0 * width * width

    def work(self, width: int, outputs: int, models: int) -> float:
        # A product for each model and one with the mean; the factor and two triangular solutions.
        return 2.0 * width**2 * outputs * (models + 2) + width**3 / 3

    def solve(self, weights: Weights, statistics: Mapping[str, Statistics]) -> tuple[torch.Tensor, Any]:
        from fusion_bench.ops import regression

        found = [statistics[model] for model in weights.models]
        exact = all(each.tensors.info(each.index[weights.name]).dtype == "F64" for each in found)
        merged, how = regression.regression(weights, (each[weights.name] for each in found), self.ratio, exact)
        return merged, None if how == "cholesky" else how

    def told(self, state: Found) -> list[str]:
        if not state.notes:
            return []
        listed = ", ".join(sorted(state.notes))
        return [f"solved by least squares, since their sum of Grams is not positive definite: {listed}"]
