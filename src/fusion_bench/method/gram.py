"""Merges whose coefficients depend on inner products: the passes that measure them, the merge row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Literal

from fusion_bench.errors import ConfigError, NonFiniteError
from fusion_bench.method.base import Inputs, Scan, Slot
from fusion_bench.method.finite import require_finite

if TYPE_CHECKING:
    import torch

Of = Literal["models", "deltas"]
"""What is combined: the models themselves, or what they changed relative to the base."""

Take = Callable[[Slot], "Iterable[torch.Tensor]"]

_BATCH_ENTRIES = 1 << 23


def taken(of: Of) -> Take:
    """The slices that a slot gives of the models, or of their deltas."""
    return (lambda slot: slot.models) if of == "models" else (lambda slot: slot.deltas)


def tensor_grams(scan: Scan, take: Take) -> dict[str, torch.Tensor]:
    """The Gram matrix of the vectors taken, tensor by tensor (N x N, float64, on the CPU)."""
    return _summed(scan(lambda slot: (slot.name, _measured(slot, take, None)), "measuring angles"))


def mean_grams(scan: Scan, take: Take, count: int, whole: bool) -> dict[str, torch.Tensor]:
    """Inner products of the `count` vectors taken, followed by their mean ((N+1) x (N+1)), by tensor.

    With `whole` of all tensors as one vector, under the name "".
    """
    import torch

    mix = torch.cat([torch.eye(count), torch.ones(1, count)]).double()
    mix[-1] /= count
    return _summed(scan(lambda slot: ("" if whole else slot.name, _measured(slot, take, mix)), "measuring norms"))


def column_grams(inputs: Inputs, scan: Scan, take: Take, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and Gram matrices of the columns (W x N x N) of each named 2-D tensor; a few tensors at a time.

    The slices must be whole rows.
    """
    from fusion_bench.ops import gram

    def visit(slot: Slot) -> tuple[str, torch.Tensor]:
        held = hold(slot, take)
        return slot.name, _finite(slot, held, gram.column_grams(held).cpu())

    for batch in _batches(inputs, names):
        yield from _summed(scan(visit, "measuring columns", batch)).items()


def combine_pieces(
    slot: Slot, of: Of, coefficients: Callable[[torch.Tensor], torch.Tensor], by: Literal["row", "column"] = "row"
) -> torch.Tensor:
    """Every row (or column) of a slot combined with coefficients of its own; the base is added to combined deltas.

    `coefficients`: Gram matrices (..., N, N) -> (..., N). A row is all that has one first index, a column all that
    differs in it alone; with fewer than two dimensions a tensor is one row.
    """
    from fusion_bench.ops import gram

    held = hold(slot, taken(of))
    shape = held[0].shape
    flat = [each.view(shape[0], prod(shape[1:])) for each in held]
    if by == "column" and len(slot.shape) > 1:
        return apply_columns(slot, of, flat, coefficients(gram.column_grams(flat)))
    factors = coefficients(gram.row_grams(flat)).to(flat[0].dtype)
    return _based(slot, of, _total(flat, [factors[:, i, None] for i in range(len(flat))]))


def apply_columns(slot: Slot, of: Of, matrices: Sequence[torch.Tensor], factors: torch.Tensor) -> torch.Tensor:
    """The matrices (R x W) summed with a coefficient for each column (W x N); overwrites them."""
    factors = factors.to(matrices[0].device, matrices[0].dtype)
    return _based(slot, of, _total(matrices, [factors[:, i] for i in range(len(matrices))]))


def combine(slot: Slot, of: Of, coefficients: Sequence[float]) -> torch.Tensor:
    """The models, or the base and the deltas, summed with one coefficient each."""
    from fusion_bench.ops import linear

    total = linear.weighted_sum(taken(of)(slot), coefficients)
    return linear.shifted(slot.base, total, 1.0) if of == "deltas" else total


def refuse_cancelled(method: str, name: str) -> ConfigError:
    """The error for directions that have no mean."""
    return ConfigError(
        f"method={method}: tensor {name!r}: the weighted directions of the models cancel, so they have no mean on the "
        "sphere. Give the models different weights (method.weights), or leave one out (modelpool.select)."
    )


def hold(slot: Slot, take: Take) -> list[torch.Tensor]:
    """Copies of the slices taken, all at once, in scratch memory: a slot overwrites each when the next is asked for."""
    from fusion_bench.ops.scratch import SCRATCH

    return [SCRATCH.like(f"held {i}", each).copy_(each) for i, each in enumerate(take(slot))]


def _measured(slot: Slot, take: Take, mix: torch.Tensor | None) -> torch.Tensor:
    from fusion_bench.ops import gram

    held = hold(slot, take)
    return _finite(slot, held, gram.gram(held, mix).cpu())


def _finite(slot: Slot, held: Sequence[torch.Tensor], found: torch.Tensor) -> torch.Tensor:
    """`found`, unless an input was not finite, or too large to square: NonFiniteError."""
    import torch

    if torch.isfinite(found).all():
        return found
    for place, values in enumerate(held):
        require_finite(slot, min(place, len(slot.model_names) - 1), values)
    raise NonFiniteError(f"tensor {slot.run[0][0]!r}: the squares of its entries exceed the range of float64.")


def _summed(parts: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The parts of each name added up in the order of slices."""
    sums: dict[str, torch.Tensor] = {}
    for name, part in parts:
        sums[name] = sums[name].add_(part) if name in sums else part.clone()
    return sums


def _batches(inputs: Inputs, names: Sequence[str]) -> Iterator[list[str]]:
    """Names in portions whose slices give results of bounded size: a pass keeps what it finds until it ends."""
    from fusion_bench.checkpoint.base import BLOCK

    batch: list[str] = []
    held = 0
    for name in names:
        info = inputs.alignment.infos[name]
        size = info.shape[-1] * len(inputs.models) ** 2 * -(-max(1, info.numel) // BLOCK)
        if batch and held + size > _BATCH_ENTRIES:
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += size
    if batch:
        yield batch


def _total(matrices: Sequence[torch.Tensor], factors: Sequence[torch.Tensor]) -> torch.Tensor:
    out = matrices[0].mul_(factors[0])
    for matrix, factor in zip(matrices[1:], factors[1:], strict=True):
        out.add_(matrix.mul_(factor))
    return out


def _based(slot: Slot, of: Of, total: torch.Tensor) -> torch.Tensor:
    return total if of == "models" else total.view(slot.base.shape).add_(slot.base)
