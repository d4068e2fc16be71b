"""Spherical linear interpolation between two models, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Slerp(TensorMethod):
    r"""$\theta = \frac{\sin((1-t)\varphi)}{\sin\varphi}\,a + \frac{\sin(t\varphi)}{\sin\varphi}\,b$,
    $\varphi$ the angle between $a$ and $b$, for each tensor as one vector.

    $a$ and $b$ are the two models of the pool in its order (the base then takes no part), or the base and the only
    model. The vectors keep their lengths: only the angle is taken from their directions (Shoemake 1985). Where one of
    them is zero, or $|\cos\varphi| > 0.9995$, opposite vectors included, the result is $(1-t)a + tb$. Fine-tuned
    models are mostly that close to each other; their task vectors are not: see `nuslerp` with `of=deltas`.
    Two passes; tensors of any size in slices. Errors: a pool of another number of models.

    Source: Arcee's MergeKit, arXiv 2403.13257.
    """

    requirement = "hyperparameter search"
    source = "Arcee's MergeKit, arXiv 2403.13257"
    symmetric = False
    model_counts: ClassVar[tuple[int, int | None]] = (1, 2)
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {"t": 1.0}, "equal": {}}

    t: float = hyper(0.5, "where between the first (0) and the second model (1)", low=0.0, high=1.0)

    def passes(self, inputs: Inputs) -> int:
        return 2

    def workspace(self, name: str, inputs: Inputs) -> float:
        return 8.0

    def survey(self, inputs: Inputs, scan: Scan) -> dict[str, list[float]]:
        from fusion_bench.method.gram import tensor_grams
        from fusion_bench.ops import spherical

        if len(inputs.models) == 1 and inputs.base is None:
            raise ConfigError(
                "method=slerp interpolates between two models, and the pool has one and no base. Add a model or a base."
            )
        grams = tensor_grams(scan, _ends)
        return {name: spherical.slerp(gram, self.t).tolist() for name, gram in grams.items()}

    def merge(self, slot: Slot, state: dict[str, list[float]]) -> torch.Tensor:
        from fusion_bench.ops import linear

        factors = state[slot.name]
        if len(slot.model_names) == 2:
            return linear.weighted_sum(slot.models, factors)
        first, second = factors
        return next(slot.models).mul_(second).add_(slot.base, alpha=first)


def _ends(slot: Slot) -> Iterator[torch.Tensor]:
    if len(slot.model_names) == 1:
        yield slot.base
    yield from slot.models
