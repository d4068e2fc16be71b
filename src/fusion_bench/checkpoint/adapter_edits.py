"""The arithmetic of adapters: how one tensor of the base changes, slice by slice.

Matrix products run over fixed blocks of rows counted from row 0, so an entry has the same bits whichever slice it is
computed for. A tensor counts as the matrix of its first length by all the others.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from fusion_bench.checkpoint.base import Delta, Dense, LowRank, Scale

if TYPE_CHECKING:
    import torch

BLOCK_ROWS = 256
BLOCK_ENTRIES = 2**16


class Edit(ABC):
    """A change of one tensor. `additive`: it adds the same whatever the tensor holds."""

    additive: ClassVar[bool] = False

    @abstractmethod
    def apply(self, start: int, values: torch.Tensor) -> None:
        """Changes `values`, the entries of the tensor from `start` on in compute precision, in place."""

    @abstractmethod
    def delta(self) -> Delta:
        """The cheapest description of the change."""


@dataclass(frozen=True)
class Grid:
    """The fixed blocks of a rows x columns matrix."""

    rows: int
    columns: int

    @cached_property
    def step(self) -> int:
        """Rows a block: a power of two, fewer where rows are long. Depends on the shape alone."""
        fitting = max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // max(1, self.columns)))
        return 1 << (fitting.bit_length() - 1)

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, slice, slice]]:
        """The blocks that entries ``start:stop`` touch: its rows, the part of the block, the part of the slice."""
        if stop <= start:
            return
        first = start // self.columns // self.step * self.step
        for row in range(first, -(-stop // self.columns), self.step):
            rows = slice(row, min(row + self.step, self.rows))
            low, high = max(start, rows.start * self.columns), min(stop, rows.stop * self.columns)
            origin = rows.start * self.columns
            yield rows, slice(low - origin, high - origin), slice(low - start, high - start)


@dataclass(frozen=True)
class Factors:
    """The parts of ``scale * B @ A`` as the adapter holds them (B: out x rank, A: rank x in)."""

    A: torch.Tensor
    B: torch.Tensor
    scale: float
    transposed: bool

    @cached_property
    def left(self) -> torch.Tensor:
        return self.A.t().contiguous() if self.transposed else self.B

    @cached_property
    def right(self) -> torch.Tensor:
        return self.B.t().contiguous() if self.transposed else self.A

    def rows(self, rows: slice) -> torch.Tensor:
        """The change of whole rows, flattened."""
        return (self.left[rows] @ self.right).mul_(self.scale).view(-1)


@dataclass(frozen=True)
class AddLowRank(Edit):
    """LoRA (arXiv 2106.09685): W + scale * B A."""

    additive = True

    grid: Grid
    factors: Callable[[], Factors]

    def apply(self, start: int, values: torch.Tensor) -> None:
        factors = self.factors()
        for rows, inside, part in self.grid.blocks(start, start + values.numel()):
            values[part] += factors.rows(rows)[inside]

    def delta(self) -> Delta:
        factors = self.factors()
        return LowRank(factors.A, factors.B, factors.scale, factors.transposed)


class Dora(Edit):
    """DoRA (arXiv 2402.09353): m * (W + scale * B A) / norm, where norm is that of W + scale * B A per output.

    Outputs are rows, or columns where the base stores its weight transposed.
    """

    def __init__(
        self,
        grid: Grid,
        factors: Callable[[], Factors],
        magnitude: Callable[[], torch.Tensor],
        original: Callable[[int, int], torch.Tensor],
    ) -> None:
        """`original(start, stop)`: entries of the unchanged tensor in compute precision."""
        self._grid = grid
        self._factors = factors
        self._magnitude = magnitude
        self._original = original
        self._lock = threading.Lock()
        self._ratio: torch.Tensor | None = None

    def apply(self, start: int, values: torch.Tensor) -> None:
        factors, ratio = self._factors(), self._ratios()
        for rows, inside, part in self._grid.blocks(start, start + values.numel()):
            spread = _along_rows if factors.transposed else _along_columns
            changed = values[part] + factors.rows(rows)[inside]
            values[part] = changed.mul_(spread(ratio, rows, self._grid)[inside])

    def _ratios(self) -> torch.Tensor:
        """magnitude / norm per output; one pass over the tensor, kept."""
        with self._lock:
            if self._ratio is None:
                self._ratio = self._compute_ratios()
            return self._ratio

    def _compute_ratios(self) -> torch.Tensor:
        import torch

        factors, grid, magnitude = self._factors(), self._grid, self._magnitude()
        squares = torch.zeros(grid.columns if factors.transposed else grid.rows, dtype=torch.float64)
        for rows, _, _ in grid.blocks(0, grid.rows * grid.columns):
            whole = self._original(rows.start * grid.columns, rows.stop * grid.columns) + factors.rows(rows)
            block = whole.view(-1, grid.columns).to(torch.float64).square_()
            if factors.transposed:
                squares += block.sum(0)
            else:
                squares[rows] = block.sum(1)
        norm = squares.sqrt_().to(magnitude.dtype)
        # Outputs whose weights are all zero have no direction; they stay zero instead of turning into NaN.
        return torch.where(norm > 0, magnitude / norm, 0.0)

    def delta(self) -> Delta:
        return Dense()


@dataclass(frozen=True)
class Multiply(Edit):
    """(IA)^3 (arXiv 2205.05638): the tensor times a vector along one axis; neutral value 1."""

    grid: Grid
    vector: Callable[[], torch.Tensor]
    axis: Literal[0, 1]
    shape: tuple[int, ...]

    def apply(self, start: int, values: torch.Tensor) -> None:
        vector = self.vector()
        if self.axis == 1:
            # Along the inputs; a convolution's kernel entries of one input follow one another.
            vector = vector.repeat_interleave(self.grid.columns // vector.numel())
        for rows, inside, part in self.grid.blocks(start, start + values.numel()):
            spread = _along_rows if self.axis == 1 else _along_columns
            values[part] *= spread(vector, rows, self.grid)[inside]

    def delta(self) -> Delta:
        lengths = [1] * len(self.shape)
        lengths[self.axis] = -1
        return Scale(self.vector().reshape(lengths))


@dataclass(frozen=True)
class AddVector(Edit):
    """The bias of a LoRA layer: b + scale * lora_b."""

    additive = True

    vector: Callable[[], torch.Tensor]
    scale: float

    def apply(self, start: int, values: torch.Tensor) -> None:
        values += self.vector()[start : start + values.numel()] * self.scale

    def delta(self) -> Delta:
        return Dense()


def _along_columns(vector: torch.Tensor, rows: slice, grid: Grid) -> torch.Tensor:
    """One entry of `vector` for each row, repeated over its columns; flattened."""
    return vector[rows].repeat_interleave(grid.columns)


def _along_rows(vector: torch.Tensor, rows: slice, grid: Grid) -> torch.Tensor:
    """`vector` once for every row; flattened."""
    return vector.repeat(rows.stop - rows.start)
