"""The mean of the models, weighted by the Fisher information of their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Inputs, TensorMethod
from fusion_bench.method.fitted import Fitted, FittedMethod, Fitting
from fusion_bench.method.weights import Weights, by_model, normalized

if TYPE_CHECKING:
    from fusion_bench.checkpoint.align import Alignment


@dataclass(frozen=True)
class FisherMerging(FittedMethod):
    r"""$\theta_j = \sum_i \lambda_i F_{ij} \theta_{ij} / \sum_i \lambda_i F_{ij}$, entry by entry.

    $F_i$ is the diagonal of the Fisher information of model i on the training data of its task. `estimator`: ``true``,
    $\frac1n \sum_x \sum_c p(c|x) (\partial_j \log p(c|x))^2$, exact over the classes; ``sampled``, one
    $c \sim p(\cdot|x)$ for each x, for many classes; ``empirical``, the right answer; ``fusionbench``, the square of
    $\partial_j \sum_{x} \sum_c \sqrt{p_c} \log p_c$ over each batch, which is no Fisher (gradients of different
    examples cancel) and serves comparison alone.

    For each example ``true`` takes one backward pass fewer than there are classes, the others take one.

    `minimal_fisher_weight` is added to every F. `normalize_fisher_weight`: $\lambda_i \propto w_i / (\|F_i\|_2 +
    10^{-6})$ with $\sum \lambda = 1$, else $\lambda_i = w_i$ (`weights`, 1 where none are given). Where every weight of
    an entry is 0, and for tensors that are excluded or are no parameters, the plain mean.

    Source: Fisher merging, arXiv 2111.09832.
    """

    requirement = "training data, gradients"
    source = "Fisher merging, arXiv 2111.09832"
    use = "train"
    gradients = True

    estimator: Literal["true", "sampled", "empirical", "fusionbench"] = hyper(
        "true", "whose log-probability is looked at"
    )
    examples: int = hyper(256, "training examples of each task", low=1)
    batch_size: int = hyper(32, "examples a batch of estimator=fusionbench; the others go one by one", low=1)
    minimal_fisher_weight: float = hyper(1e-6, "added to every F", low=0.0)
    normalize_fisher_weight: bool = hyper(True, "divide each model's F by its norm over all parameters")
    weights: Weights = hyper(None, "w by name ({cola: 0.7, mnli: 0.3}) or in pool order; null: all 1")
    exclude: tuple[str, ...] = hyper((), "regular expressions of tensors that are averaged")

    def __post_init__(self) -> None:
        from fusion_bench.method.statistics_of import check_patterns

        super().__post_init__()
        check_patterns(self.exclude)
        object.__setattr__(self, "reads_labels", self.estimator == "empirical")

    def check(self, models: Sequence[str]) -> None:
        weights = by_model(self.weights, models)
        if min(weights) < 0 or sum(weights) == 0:
            shown = dict(zip(models, weights, strict=True))
            raise ConfigError(f"method.weights={shown}: expected weights of at least 0, one of them above 0.")

    def check_tensors(self, alignment: Alignment) -> None:
        from fusion_bench.method.statistics_of import check_patterns

        check_patterns(self.exclude, alignment)

    def looks_at(self, available: int) -> int:
        return min(available, self.examples)

    def preview(self) -> TensorMethod:
        from fusion_bench.method.fisher_weighted import FisherWeighted

        return FisherWeighted()

    def fit(self, inputs: Inputs, fitting: Fitting) -> Fitted:
        from fusion_bench.method import statistics_of as measured
        from fusion_bench.method.fisher_weighted import FisherWeighted
        from fusion_bench.statistics import diagonal_fisher

        statistics = measured.of_models(
            inputs,
            lambda name, model: diagonal_fisher(name, model, fitting, self.estimator, self.examples, self.batch_size),
        )
        left_out = measured.excluded(self.exclude, inputs.alignment.floating)
        names = measured.common(statistics.values(), inputs.alignment.floating) - left_out
        norms = [measured.norm(found, names) for found in statistics.values()]
        factors = by_model(self.weights, tuple(inputs.models))
        if self.normalize_fisher_weight:
            factors = normalized([w / (n + 1e-6) for w, n in zip(factors, norms, strict=True)])
        record = {
            "statistics": measured.costs(statistics),
            "norms": dict(zip(statistics, norms, strict=True)),
            "factors": dict(zip(statistics, factors, strict=True)),
        }
        merging = FisherWeighted(
            statistics=statistics, names=names, factors=tuple(factors), floor=self.minimal_fisher_weight
        )
        count = len(inputs.alignment.floating)
        others = ", the others averaged" if len(names) < count else ""
        told = f"{len(names)} of {count} tensors are weighted by Fisher information{others}"
        return Fitted(merging, record, (told,))
