"""A method run on small matrices that stand for the changes of large ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, TypeVar

from fusion_bench.adapter.members import Members
from fusion_bench.checkpoint.align import align
from fusion_bench.checkpoint.base import Checkpoint, LowRank
from fusion_bench.checkpoint.structure import Structure
from fusion_bench.method.base import Inputs, Merged, TensorMethod
from fusion_bench.method.budget import check_budget
from fusion_bench.parallel import ordered_map

if TYPE_CHECKING:
    import torch

    from fusion_bench.method.engine import MergedCheckpoint


def merged(
    method: TensorMethod, models: Mapping[str, Checkpoint], base: Checkpoint, inputs: Inputs, matrices: bool = True
) -> MergedCheckpoint:
    """The fusion of `models` over `base`, which have the names of some tensors of `inputs` and shapes of their own.

    `matrices`: the tensors that are weights of linear layers in the model count as such here. All are out x in.
    """
    alignment = align(base, models)
    linear = inputs.structure.linear & set(alignment.names) if matrices else frozenset()
    before = inputs.structure.before & set(alignment.names)
    blocks = {name: place for name, place in inputs.structure.blocks.items() if name in alignment.infos}
    structure = Structure(linear=linear, blocks=blocks, before=before)
    given = replace(inputs, models=models, base=base, alignment=alignment, structure=structure, dtype=None)
    method.check_tensors(alignment)
    check_budget(method, given)
    fused = method.fuse(given)
    assert isinstance(fused, Merged), "methods with several results were refused"
    from fusion_bench.method.engine import MergedCheckpoint

    assert isinstance(fused.checkpoint, MergedCheckpoint)
    return fused.checkpoint


Result = TypeVar("Result")


def each(names: Sequence[str], visit: Callable[[str], Result], inputs: Inputs, what: str) -> list[Result]:
    """`visit` of every name, on the threads of `inputs`, one torch thread each; results in order."""
    with inputs.progress.bar(what, len(names), "tensors") as advance:
        found = []
        for result in ordered_map(visit, names, inputs.threads):
            found.append(result)
            advance(1)
    return found


@dataclass(frozen=True)
class Part:
    """The merged change of one tensor; squared norms of what is kept and of what the method gave."""

    factors: LowRank
    kept: float
    given: float


def part(
    members: Members, name: str, up: torch.Tensor, down: torch.Tensor, transposed: bool, kept: float, given: float
) -> Part:
    """Factors in the precision of the result; rank 1 of zeros where nothing changes, since no rank is below 1."""
    if not up.shape[1]:
        up, down = up.new_zeros(up.shape[0], 1), down.new_zeros(1, down.shape[1])
    dtype = members.dtype(name)
    return Part(LowRank(down.to(dtype).contiguous(), up.to(dtype).contiguous(), 1.0, transposed), kept, given)


def zero(members: Members, name: str, transposed: bool) -> Part:
    """No change of a tensor."""
    import torch

    rows, columns = sides(members, name, transposed)
    return part(members, name, torch.zeros(rows, 0), torch.zeros(0, columns), transposed, 0.0, 0.0)


def sides(members: Members, name: str, transposed: bool) -> tuple[int, int]:
    """Outputs and inputs of the layer; a convolution's kernel counts as inputs."""
    shape = members.base.info(name).shape
    rows, columns = shape[0], prod(shape[1:])
    return (columns, rows) if transposed else (rows, columns)
