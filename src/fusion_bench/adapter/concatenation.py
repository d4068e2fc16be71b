"""Weighted sums of low-rank adapters, exact: their factors side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_bench.adapter.members import Members
from fusion_bench.adapter.small import Part, each, part, zero
from fusion_bench.checkpoint.base import LowRank
from fusion_bench.method.base import Inputs, TensorMethod
from fusion_bench.method.weights import by_model, normalized


def coefficients(method: TensorMethod, models: Sequence[str]) -> dict[str, float] | None:
    """The factor that a linear method puts on each model's change; None for any other method."""
    values: Any = method
    if method.key() == "simple_average":
        found: Sequence[float] = [1 / len(models)] * len(models)
    elif method.key() == "task_arithmetic":
        found = [values.scaling_factor] * len(models)
    elif method.key() == "weighted_average":
        weights = by_model(values.weights, models)
        found = normalized(weights) if values.normalize else weights
    else:
        return None
    return dict(zip(models, found, strict=True))


def concatenate(members: Members, factors: Mapping[str, float], inputs: Inputs) -> dict[str, Part]:
    r"""$A = [A_1; …; A_N]$ and $B = [w_1 s_1 B_1, …, w_N s_N B_N]$, of rank $\sum r$, for every tensor.

    $B A = \sum_i w_i s_i B_i A_i$ without cross terms, which sums of the A and of the B would have. Models of weight 0
    take no part. One adapter with weight 1 stays as it is, with its scaling in B.
    """

    def visit(name: str) -> Part:
        import torch

        transposed, found = members.factors(name)
        pairs = [(up * factors[model], down) for model, (up, down) in found.items() if factors[model]]
        if not pairs:
            return zero(members, name, transposed)
        up, down = torch.cat([up for up, _ in pairs], dim=1), torch.cat([down for _, down in pairs])
        norm = float(((up.t() @ up) * (down @ down.t())).sum().clamp_min(0))
        return part(members, name, up, down, transposed, norm, norm)

    names = members.of_kind(LowRank)
    return dict(zip(names, each(names, visit, inputs, "joining factors"), strict=True))
