"""Linear layers that answer as each model's own layer does on that model's data."""

from __future__ import annotations

from dataclasses import dataclass

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, TensorMethod
from fusion_bench.method.fitted import Fitted, FittedMethod, Fitting


@dataclass(frozen=True)
class Regmean(FittedMethod):
    r"""$W^\top = (\sum_i \tilde G_i)^{-1} \sum_i \tilde G_i W_i^\top$ for linear layers, the mean for other tensors.

    $G_i = X_i^\top X_i / \#tokens$ of the inputs $X_i$ of model i's layer on its training data, without padding;
    $\tilde G$: entries off the diagonal times $\alpha$ = `reduce_non_diagonal_ratio` (0.95 in today's tables of CLIP,
    0.6 in the earlier ones and for GPT-2). With $\alpha = 1$ it is $\min_W \sum_i \|X_i (W - W_i)^\top\|^2 / \#tokens$.

    Layers that share their input (q, k and v) share one Gram. The equations are solved in float64 for the distance from
    the mean, by Cholesky with a small ridge, else by least squares: directions that no input shows stay the mean.
    Layers stored in x out (GPT-2) are recognised. Labels are not looked at, but language
    models are run on the right answers, as in training.

    Source: RegMean, arXiv 2212.09849.
    """

    requirement = "training data"
    source = "RegMean, arXiv 2212.09849"
    use = "train"

    reduce_non_diagonal_ratio: float = hyper(0.95, "α, what entries off the diagonal of a Gram are multiplied by",
                                             low=0.0, high=1.0)  # fmt: skip
    examples: int = hyper(256, "training examples of each task", low=1)
    batch_size: int = hyper(16, "examples that run at once", low=1)
    count_padding: bool = hyper(False, "take padding for tokens, as the original code does")

    def looks_at(self, available: int) -> int:
        return min(available, self.examples)

    def preview(self) -> TensorMethod:
        from fusion_bench.method.solved_regression import SolvedRegression

        return SolvedRegression(ratio=self.reduce_non_diagonal_ratio)

    def fit(self, inputs: Inputs, fitting: Fitting) -> Fitted:
        from fusion_bench.method import statistics_of as measured
        from fusion_bench.method.solved_regression import SolvedRegression
        from fusion_bench.statistics import input_grams

        statistics = measured.of_models(
            inputs,
            lambda name, model: input_grams(
                name, model, fitting, inputs.structure, self.examples, self.batch_size, self.count_padding
            ),
        )
        log: dict[str, str] = {}
        merging = SolvedRegression(statistics=statistics, ratio=self.reduce_non_diagonal_ratio, log=log)
        return Fitted(merging, {"statistics": measured.costs(statistics), "fallbacks": log})
