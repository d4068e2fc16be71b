"""Low-rank adapters merged in the space that their factors span: Core Space, arXiv 2509.17786."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion_bench.adapter.adapter import Rank
from fusion_bench.adapter.members import Members
from fusion_bench.adapter.small import Part, each, merged, part, zero
from fusion_bench.checkpoint.base import LowRank
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.method.base import Inputs, TensorMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Frame:
    """The bases of one tensor: `left` has orthonormal columns, `right` orthonormal rows; the small matrices between."""

    left: torch.Tensor
    right: torch.Tensor
    cores: Mapping[str, torch.Tensor]
    transposed: bool


def fuse_in_core(
    members: Members, method: TensorMethod, inputs: Inputs, rank: Rank
) -> tuple[dict[str, Part], list[str]]:
    r"""Factors of the merged change of every tensor, with remarks.

    $U_B$ spans the columns of $[s_1 B_1, …, s_N B_N]$ and $V_A$ the rows of $[A_1; …; A_N]$; the method merges the
    small $M_i = s_i (U_B^T B_i)(A_i V_A^T)$, at most $\sum r$ square, over a base of zeros; then
    $\Delta W = U_B M V_A$. For a linear method that is the dense result. A tensor that a model does not change is a
    zero matrix there. Ranks may differ. The SVD of $M$ gives factors of the least rank, or the best of rank `rank`.

    Memory: the factors of all models and as much for the result; small matrices in float64.

    Source: Core Space, arXiv 2509.17786.
    """
    names = members.of_kind(LowRank)
    frames = dict(zip(names, each(names, lambda name: _frame(members, name), inputs, "aligning factors"), strict=True))
    live = [name for name, frame in frames.items() if frame.left.shape[1] and frame.right.shape[0]]
    parts = {name: zero(members, name, frames[name].transposed) for name in names if name not in live}
    if not live:
        return parts, []
    models = {model: MemoryCheckpoint(_cores(frames, live, model), members.base.config) for model in members.models}
    base = MemoryCheckpoint(_cores(frames, live, None), members.base.config)
    result = merged(method, models, base, inputs)

    def finish(name: str) -> Part:
        from fusion_bench.ops import low_rank

        frame = frames[name]
        up, down, kept, given = low_rank.split(result[name], rank, members.null(name))
        return part(members, name, frame.left.double() @ up, down @ frame.right.double(), frame.transposed, kept, given)

    parts.update(zip(live, each(live, finish, inputs, "merging"), strict=True))
    return parts, result.remarks()


def _frame(members: Members, name: str) -> Frame:
    from fusion_bench.ops import low_rank

    transposed, factors = members.factors(name)
    left = low_rank.column_basis([up for up, _ in factors.values()])
    right = low_rank.column_basis([down.t() for _, down in factors.values()]).t()
    cores = {model: (left.t() @ up) @ (down @ right.t()) for model, (up, down) in factors.items()}
    dtype = members.dtype(name)
    return Frame(left.to(dtype), right.contiguous().to(dtype), cores, transposed)


def _cores(frames: Mapping[str, Frame], names: list[str], model: str | None) -> dict[str, torch.Tensor]:
    import torch

    found = {}
    for name in names:
        frame = frames[name]
        own = frame.cores.get(model) if model is not None else None
        shape = frame.left.shape[1], frame.right.shape[0]
        found[name] = torch.zeros(shape, dtype=torch.float64) if own is None else own
    return found
