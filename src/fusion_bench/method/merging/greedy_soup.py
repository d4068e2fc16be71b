"""The average of the models that each raise the held-out score."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError
from fusion_bench.fitting import Fitted, Fitting
from fusion_bench.method.base import Inputs, Merged, TensorMethod
from fusion_bench.method.fitted import FittedMethod

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint


@dataclass(frozen=True)
class GreedySoup(FittedMethod):
    r"""$\theta = \frac{1}{|S|} \sum_{i \in S} \theta_i$ with $S$ chosen one model after the other.

    Models are taken from the best to the worst by their score on held-out data, the unweighted mean of the tasks'
    primary metrics; one stays in $S$ where the average with it scores at least as well as the best average so far
    (`accept` ``better``: strictly better). So the soup never scores below the best single model on these data. Of
    equal scores the model that comes first in the pool is taken first.

    Source: Model soups, arXiv 2203.05482.
    """

    requirement = "held-out labelled data"
    source = "Model soups, arXiv 2203.05482"
    symmetric = False
    use = "select"
    reads_labels = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": {}}

    accept: Literal["not_worse", "better"] = hyper("not_worse", "when a model is added to the soup")
    order: Literal["score", "pool"] = hyper(
        "score", "the order in which models are tried: by held-out score, or the pool's"
    )

    def looks_at(self, available: int) -> int:
        return available

    def preview(self) -> TensorMethod:
        return averaging(())

    def fit(self, inputs: Inputs, fitting: Fitting) -> Fitted:
        if fitting.held_out is None:
            raise ConfigError(f"method={self.key()} chooses by held-out scores, and nothing gives any.")
        score = fitting.held_out
        started = time.perf_counter()
        names = list(inputs.models)
        tried: list[dict[str, Any]] = []

        def measured(chosen: Sequence[str]) -> float:
            found = dict(score(_average(inputs, chosen)))
            mean = sum(found.values()) / max(1, len(found))
            tried.append({"models": list(chosen), "score": mean, "tasks": found})
            return mean

        with fitting.progress.bar("choosing models", 2 * len(names) - 1, "models") as advance:
            alone = {}
            for name in names:
                alone[name] = measured([name])
                advance(1)
            order = sorted(names, key=lambda name: -alone[name]) if self.order == "score" else names
            chosen, best = [order[0]], alone[order[0]]
            for name in order[1:]:
                found = measured([*chosen, name])
                if found > best or (found == best and self.accept == "not_worse"):
                    chosen, best = [*chosen, name], found
                advance(1)
        weights = tuple(float(name in chosen) for name in names)
        record = {"chosen": chosen, "score": best, "tried": tried, "seconds": round(time.perf_counter() - started, 3)}
        return Fitted(averaging(weights), record, (f"greedy soup of {len(chosen)} models: {', '.join(chosen)}",))


def averaging(weights: tuple[float, ...]) -> TensorMethod:
    """The weighted average that a soup is."""
    from fusion_bench.method import method_class

    made: Any = method_class("weighted_average")
    found: TensorMethod = made(weights=weights or None)
    return found


def _average(inputs: Inputs, names: Sequence[str]) -> Checkpoint:
    few = replace(inputs, models={name: inputs.models[name] for name in names})
    fused = averaging(()).fuse(few)
    assert isinstance(fused, Merged)
    return fused.checkpoint
