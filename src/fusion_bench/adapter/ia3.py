"""(IA)^3 adapters merged around their neutral value 1, arXiv 2205.05638."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_bench.adapter.members import Members
from fusion_bench.adapter.small import merged
from fusion_bench.checkpoint.base import Scale
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import NonFiniteError
from fusion_bench.method.base import Inputs, TensorMethod

if TYPE_CHECKING:
    import torch


def fuse_vectors(members: Members, method: TensorMethod, inputs: Inputs) -> tuple[dict[str, Scale], list[str]]:
    r"""The merged vector of every tensor, in the shape that multiplies it, with remarks.

    The method merges the $l_i - 1$ over a base of zeros, and $l = 1 +$ merged. A module that an adapter leaves alone
    counts as 1 there, so weights that do not sum to 1 shrink nothing. Spectral methods see vectors, not matrices.

    Source: (IA)^3, arXiv 2205.05638.
    """
    import torch

    names = [name for name in members.of_kind(Scale) if name in members.targets]
    shapes: dict[str, torch.Size] = {}
    moves: dict[str, dict[str, torch.Tensor]] = {model: {} for model in members.models}
    for name in names:
        for model, checkpoint in members.models.items():
            delta = checkpoint.delta(name)
            if not isinstance(delta, Scale):
                continue
            if not torch.isfinite(delta.factor).all():
                module = members.targets[name].module
                raise NonFiniteError(f"model {model!r}: the vector of {module} holds NaN or infinity.")
            shapes[name] = delta.factor.shape
            moves[model][name] = delta.factor.to(torch.float64).reshape(-1) - 1.0
    still = {name: torch.zeros(shape.numel(), dtype=torch.float64) for name, shape in shapes.items()}
    models = {
        model: MemoryCheckpoint({name: own.get(name, still[name].clone()) for name in names}, members.base.config)
        for model, own in moves.items()
    }
    result = merged(method, models, MemoryCheckpoint(still, members.base.config), inputs, matrices=False)
    vectors = {name: Scale((1.0 + result[name]).to(members.dtype(name)).reshape(shapes[name])) for name in names}
    return vectors, result.remarks()
