"""The point between the models in the metric that each task's data define, by conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import AlignmentError, ConfigError
from fusion_bench.method.base import Inputs, TensorMethod
from fusion_bench.method.fitted import Fitted, FittedMethod, Fitting

if TYPE_CHECKING:
    from fusion_bench.checkpoint.align import Alignment
    from fusion_bench.statistics import Statistics


@dataclass(frozen=True)
class Mats(FittedMethod):
    r"""$(\sum_i C_i) W = \sum_i C_i W_i$ for linear layers (W in x out), the mean for other tensors.

    `metric`: what $C_i$ does to W. ``identity``: nothing. ``diag_fisher``: $\max(F_i, 10^{-8}) \odot W$. ``gram``:
    $A_i W$ with $A_i = X_i^\top X_i / \#tokens$ of the layer's inputs. ``kfac``: $A_i W B_i$, $B_i$ the Gram of the
    gradients at its output, divided by the same number of tokens. ``ia3_block``: $F_i l$ for the vectors of (IA)^3,
    $F_i$ their whole Fisher information; linear layers are then averaged.

    The first two are solved in closed form, the others by conjugate gradients from `init`: few `iterations` stay near
    it, which makes the two the real hyperparameters. Inputs that no data show keep their start. `solver=closed` gives
    the minimum at once where there is one equation for each layer (``gram``, ``ia3_block``).

    Published settings: kfac 100 steps from task arithmetic (0.3), gram 100 steps, ia3_block 10 steps from task
    arithmetic (0.2), up to 1000 examples. `estimator`: whose log-probability the gradients are of, as in
    ``fisher_merging``.

    Source: MaTS, arXiv 2312.04339.
    """

    requirement = "training data, gradients"
    source = "MaTS, arXiv 2312.04339"
    use = "train"

    metric: Literal["identity", "diag_fisher", "gram", "kfac", "ia3_block"] = hyper("kfac", "what C does to W")
    iterations: int = hyper(100, "steps of conjugate gradients at most", low=0)
    tolerance: float = hyper(1e-5, "residual over right side at which a layer is done", low=0.0)
    init: Literal["mean", "zeros", "pretrained", "task_arithmetic", "path"] = hyper("mean", "where the steps begin")
    path: str | None = hyper(None, "the model that init=path begins from: a folder or a file")
    init_scaling_factor: float = hyper(0.3, "λ of init=task_arithmetic")
    solver: Literal["cg", "closed"] = hyper("cg", "steps, or the minimum itself (gram, ia3_block)")
    jacobi: bool = hyper(False, "divide residuals by the diagonal of the system")
    estimator: Literal["empirical", "sampled", "true"] = hyper("empirical", "whose log-probability is looked at")
    examples: int = hyper(1000, "training examples of each task", low=1)
    batch_size: int = hyper(16, "examples that run at once where no gradients are taken", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.init == "path") != (self.path is not None):
            raise ConfigError(
                f"method.init={self.init} and method.path={'null' if self.path is None else self.path}: a path is "
                "given with init=path, and only then."
            )
        if self.solver == "closed" and self.metric == "kfac":
            raise ConfigError(
                "method.solver=closed: the equations of metric=kfac are solved by conjugate gradients alone. "
                "Take solver=cg, or metric=gram."
            )
        gradients = self.metric in ("diag_fisher", "kfac", "ia3_block")
        object.__setattr__(self, "gradients", gradients)
        object.__setattr__(self, "reads_labels", gradients and self.estimator == "empirical")
        object.__setattr__(self, "needs_base", self._steps and self.init in ("pretrained", "task_arithmetic"))

    @property
    def _steps(self) -> bool:
        return self.solver == "cg" and self.metric in ("gram", "kfac", "ia3_block")

    def check_tensors(self, alignment: Alignment) -> None:
        if self.path is None:
            return
        from fusion_bench.checkpoint.open import open_checkpoint

        start = open_checkpoint(self.path)
        faults = [
            f"tensor {name!r}" for name in alignment.floating
            if name not in start or start.info(name).shape != alignment.infos[name].shape
        ]  # fmt: skip
        if faults:
            raise AlignmentError(
                f"method.path={self.path}: lacks {len(faults)} tensors of the models, or has them in other shapes, "
                f"such as {faults[0]}. Give a model of the same architecture."
            )

    def looks_at(self, available: int) -> int:
        if self.metric == "identity":
            return 0
        return min(available, self.examples)

    def preview(self) -> TensorMethod:
        from fusion_bench.method.fisher_weighted import FisherWeighted
        from fusion_bench.method.solved_regression import SolvedRegression

        if self.metric in ("identity", "diag_fisher"):
            return FisherWeighted()
        return self._conjugate() if self._steps else SolvedRegression()

    def fit(self, inputs: Inputs, fitting: Fitting) -> Fitted:
        from fusion_bench.method import statistics_of as measured
        from fusion_bench.method.fisher_weighted import FisherWeighted

        if self.metric == "identity":
            return Fitted(FisherWeighted())
        statistics, outputs = self._measured(inputs, fitting)
        record: dict[str, Any] = {"statistics": measured.costs(statistics)}
        if outputs is not None:
            record["output_statistics"] = measured.costs(outputs)
        if self.metric == "diag_fisher":
            names = measured.common(statistics.values(), inputs.alignment.floating) & inputs.structure.linear
            factors = (1.0,) * len(statistics)
            weighted = FisherWeighted(statistics=statistics, names=names, factors=factors, floor=1e-8, mode="max")
            told = f"{len(names)} of {len(inputs.alignment.floating)} tensors are weighted, the others averaged"
            return Fitted(weighted, record, (told,))
        from fusion_bench.method.solved_regression import SolvedRegression

        record["layers"] = {}
        if self._steps:
            return Fitted(self._conjugate(statistics, outputs, record["layers"]), record)
        return Fitted(SolvedRegression(statistics=statistics, log=record["layers"]), record)

    def _measured(self, inputs: Inputs, fitting: Fitting) -> tuple[dict[str, Statistics], dict[str, Statistics] | None]:
        """What C is made of: on the left, and on the right where there is a right."""
        from fusion_bench.method.statistics_of import of_models
        from fusion_bench.statistics import diagonal_fisher, input_grams, output_grams, vector_fishers
        from fusion_bench.statistics.vectors import is_vector

        rows, structure = self.examples, inputs.structure
        if self.metric == "diag_fisher":
            return of_models(inputs, lambda n, m: diagonal_fisher(n, m, fitting, self.estimator, rows)), None
        if self.metric == "ia3_block":
            names = [name for name in inputs.alignment.floating if is_vector(name, inputs.alignment.infos[name])]
            if not names:
                raise ConfigError(
                    "method.metric=ia3_block: the models have no vectors of (IA)^3 (tensors named ia3_l). Fuse modules "
                    "that keep them apart, or take metric=kfac."
                )
            return of_models(inputs, lambda n, m: vector_fishers(n, m, fitting, names, self.estimator, rows)), None
        left = of_models(inputs, lambda n, m: input_grams(n, m, fitting, structure, rows, self.batch_size))
        if self.metric == "gram":
            return left, None
        return left, of_models(inputs, lambda n, m: output_grams(n, m, fitting, structure, self.estimator, rows))

    def _conjugate(self, statistics: Any = None, outputs: Any = None, log: Any = None) -> TensorMethod:
        from fusion_bench.checkpoint.open import open_checkpoint
        from fusion_bench.method.solved_conjugate import SolvedConjugate

        if statistics is not None and outputs is not None:
            # A layer that has one of the two alone is averaged.
            statistics = {
                model: found.renamed({name: name for name in found.index if name in outputs[model]})
                for model, found in statistics.items()
            }
        return SolvedConjugate(
            statistics=statistics,
            outputs=outputs if statistics is not None or self.metric != "kfac" else {},
            log=log,
            iterations=self.iterations,
            tolerance=self.tolerance,
            init=self.init,
            start=None if self.path is None else open_checkpoint(self.path),
            scaling_factor=self.init_scaling_factor,
            jacobi=self.jacobi,
        )
