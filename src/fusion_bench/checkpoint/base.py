"""The abstract checkpoint: a read-only, lazy mapping from tensor name to tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The safetensors spelling of dtypes is the one vocabulary for dtypes outside torch: headers are read, compared
# with one another and counted without importing it. Bytes per entry beside each.
DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
# Entries a slice. Slices start at multiples of it, whatever the threads or the memory: the position of an entry inside
# its slice decides which lane of a vector instruction rounds it, so cutting elsewhere could change the last bit.
BLOCK = 2**20

Piece = tuple[str, int, int]
"""Entries ``start:stop`` of the flattened tensor of a name."""

Run = tuple[Piece, ...]
"""Pieces of tensors of one dtype that are computed and written together."""

FLOATING: frozenset[str] = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor: `dtype` in safetensors spelling (``"F32"``), `shape` in entries."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPE_BYTES[self.dtype]

    @property
    def floating(self) -> bool:
        return self.dtype in FLOATING


@dataclass(frozen=True, slots=True)
class LowRank:
    """A delta ``scale * B @ A`` (B: out x rank, A: rank x in), transposed afterwards where `transposed` is set."""

    A: torch.Tensor
    B: torch.Tensor
    scale: float
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """A multiplicative change: the base tensor times `factor` (broadcast), neutral value 1."""

    factor: torch.Tensor


@dataclass(frozen=True, slots=True)
class Dense:
    """A change that has no cheaper form than the whole tensor: read the tensor itself."""


Delta = LowRank | Scale | Dense | None


class Checkpoint(Mapping[str, "torch.Tensor"], ABC):
    """Named tensors that are read one at a time, or one slice of one at a time.

    Iteration yields the names in sorted order, each stored tensor once; `aliases` maps further names of the same
    tensor (tied weights) to the name it is stored under, and reading an alias reads that tensor. Implementations are
    safe to read from several threads at once and never modify their files.
    """

    @property
    @abstractmethod
    def infos(self) -> Mapping[str, TensorInfo]:
        """Header facts of every stored tensor, names sorted. Reads no tensor data, imports no torch."""

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Entries ``start:stop`` of the flattened tensor `name` (or alias), 1-D, in the stored dtype.

        The result is a fresh tensor that the caller may overwrite.
        """

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fills `out` (1-D, contiguous, of the stored dtype) with the entries from `start` on: no fresh memory."""
        out.copy_(self.read(name, start, start + out.numel()))

    def read_run(self, run: Run, out: torch.Tensor) -> None:
        """Fills `out` (1-D, contiguous, of the stored dtype of all pieces) with the pieces, one after the other."""
        done = 0
        for name, start, stop in run:
            if stop > start:
                self.read_into(name, start, out[done : done + stop - start])
            done += stop - start

    def step(self, name: str) -> int:
        """Entries that a slice of a large tensor should hold: reads that begin at its multiples cost no work twice."""
        return BLOCK

    def expect(self, run: Run) -> None:
        """Says that `run` will be read soon, so that the disk may begin."""
        return

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of stored tensors: alias -> stored name."""
        return {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's config.json as a plain mapping; empty when there is none."""
        return {}

    @property
    def folder(self) -> Path | None:
        """Where tokenizer and generation files lie; None for checkpoints that live in memory."""
        return None

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells this input from another: path, Hub commit, size, time and header digest of each file."""
        return {}

    @property
    def base(self) -> Checkpoint | None:
        """The checkpoint this one is stored relative to (adapters); None for full models."""
        return None

    def delta(self, name: str) -> Delta:
        """What this checkpoint changes relative to `base`; None when it changes nothing. Full models: Dense."""
        return Dense()

    def apply_delta(self, name: str, start: int, base_slice: torch.Tensor) -> torch.Tensor:
        """The entries from `start` on, given the `base`'s in `base_slice` (1-D, float32 or wider), in its dtype.

        For callers that hold the base's slice already; adapters then read nothing else. `base_slice` is left as it is.
        """
        return self.read(name, start, start + base_slice.numel()).to(base_slice.dtype)

    def change(self, name: str, start: int, base_slice: torch.Tensor) -> torch.Tensor:
        """What `apply_delta` adds to `base_slice`: free of the rounding of that sum where the change is additive."""
        return self.apply_delta(name, start, base_slice).sub_(base_slice)

    def close(self) -> None:
        """Releases files. Reading after this is an error."""
        return

    def info(self, name: str) -> TensorInfo:
        """Dtype and shape of `name` (or alias); KeyError when there is no such tensor. Reads no data."""
        return self.infos[self.stored(name)]

    def stored(self, name: str) -> str:
        """The name under which `name` is stored."""
        return self.aliases.get(name, name)

    def span(self, name: str, start: int, stop: int | None) -> tuple[str, int, int]:
        """The stored name and the checked range that a call of `read` means; KeyError or IndexError otherwise."""
        stored = self.stored(name)
        numel = self.infos[stored].numel
        end = numel if stop is None else stop
        if not 0 <= start <= end <= numel:
            raise IndexError(f"{name}: entries {start}:{end} of a tensor of {numel}")
        return stored, start, end

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.read(name).reshape(self.info(name).shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos or name in self.aliases
