"""Low-rank adapters merged in the space of their joint SVD: KnOTS, arXiv 2410.19735."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusion_bench.adapter.adapter import Rank
from fusion_bench.adapter.members import Members
from fusion_bench.adapter.small import Part, each, merged, part, zero
from fusion_bench.checkpoint.base import Checkpoint, LowRank, TensorInfo
from fusion_bench.checkpoint.dtypes import header_name
from fusion_bench.checkpoint.recent import Recent
from fusion_bench.method.base import Inputs, TensorMethod

if TYPE_CHECKING:
    import torch

# Singular values of the joint matrix up to this are dropped, as in the paper; of the largest where that is below 1.
NULL = 1e-5
_KEPT = 4


@dataclass(frozen=True)
class Knot:
    """The joint SVD of one tensor: `left` is U, ``coefficients[model] @ rows[model]`` the model's aligned part."""

    left: torch.Tensor
    coefficients: Mapping[str, torch.Tensor]
    rows: Mapping[str, torch.Tensor]
    transposed: bool
    inputs: int


def fuse_in_knots(
    members: Members, method: TensorMethod, inputs: Inputs, rank: Rank
) -> tuple[dict[str, Part], list[str]]:
    r"""Factors of the merged change of every tensor, with remarks.

    With $[\Delta W_1 | … | \Delta W_N] = U \Sigma [V_1^T | … | V_N^T]$ the method merges the $\Sigma V_i^T$ over a base
    of zeros, and $\Delta W = U \cdot$ merged. The joint SVD is found from the factors. For a linear method that is the
    dense result. Memory: the factors of all models and as much for the result.

    Source: KnOTS, arXiv 2410.19735.
    """
    names = members.of_kind(LowRank)
    knots = dict(zip(names, each(names, lambda name: _knot(members, name), inputs, "aligning factors"), strict=True))
    live = [name for name, knot in knots.items() if knot.left.shape[1]]
    parts = {name: zero(members, name, knots[name].transposed) for name in names if name not in live}
    if not live:
        return parts, []
    alive = {name: knots[name] for name in live}
    models = {model: _Aligned(alive, model, members.base.config) for model in members.models}
    result = merged(method, models, _Aligned(alive, None, members.base.config), inputs)

    def finish(name: str) -> Part:
        from fusion_bench.ops import low_rank

        knot = knots[name]
        up, down, kept, given = low_rank.split(result[name], rank, members.null(name))
        return part(members, name, knot.left.double() @ up, down, knot.transposed, kept, given)

    parts.update(zip(live, each(live, finish, inputs, "merging"), strict=True))
    return parts, result.remarks()


def _knot(members: Members, name: str) -> Knot:
    from fusion_bench.ops import low_rank

    transposed, factors = members.factors(name)
    ups, downs = [up for up, _ in factors.values()], [down for _, down in factors.values()]
    left, coefficients, rows = low_rank.joint_parts(ups, downs, NULL)
    dtype = members.dtype(name)
    return Knot(
        left.to(dtype),
        {model: each.to(dtype) for model, each in zip(factors, coefficients, strict=True)},
        {model: each.to(dtype) for model, each in zip(factors, rows, strict=True)},
        transposed,
        downs[0].shape[1],
    )


class _Aligned(Checkpoint):
    r"""The $\Sigma V_i^T$ of one model, multiplied out when read; zeros for the base and where the model is absent."""

    def __init__(self, knots: Mapping[str, Knot], model: str | None, config: Mapping[str, Any]) -> None:
        self._knots, self._model, self._config = dict(sorted(knots.items())), model, config
        self._infos = {
            name: TensorInfo(header_name(knot.left.dtype, name), (knot.left.shape[1], knot.inputs))
            for name, knot in self._knots.items()
        }
        self._recent = Recent(_KEPT)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        stored, begin, end = self.span(name, start, stop)
        knot = self._knots[stored]
        if self._model not in knot.rows:
            return knot.left.new_zeros(end - begin)
        return self._recent.get(stored, lambda: self._whole(knot))[begin:end].clone()

    def _whole(self, knot: Knot) -> torch.Tensor:
        from fusion_bench.parallel import one_torch_thread

        assert self._model is not None
        with one_torch_thread():
            return (knot.coefficients[self._model] @ knot.rows[self._model]).reshape(-1)
