"""Where the runs of an output lie in its files, decided before any value is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fusion_bench.checkpoint.base import BLOCK, DTYPE_BYTES, Piece, Run, TensorInfo
from fusion_bench.checkpoint.digests import combined, cut, digest
from fusion_bench.checkpoint.manifest import TensorEntry
from fusion_bench.checkpoint.shards import Shard

Place = tuple[str, int, int]
"""A file, a position in it, a number of bytes."""


class Layout:
    """The files (`shards`), the runs that fill them, and the pieces of the runs that have digests.

    Digests are of pieces of BLOCK entries; where runs are cut elsewhere, of the runs' own pieces.
    """

    def __init__(self, infos: Mapping[str, TensorInfo], shards: Sequence[Shard], runs: Sequence[Run]) -> None:
        self.infos = infos
        self.shards = shards
        self.runs = [run for run in runs if any(stop > start for _, start, stop in run)]
        self._places = {name: (shard.file, offset) for shard in shards for name, offset in shard.offsets.items()}
        self._steps: dict[str, int] = {}
        for run in self.runs:
            for name, start, stop in run:
                length = stop - start
                if start == 0 and stop < infos[name].numel and length % BLOCK:
                    self._steps[name] = length
        # Runs are told by where they begin: every entry is in one run alone.
        self._indices = {run[0][:2]: index for index, run in enumerate(self.runs)}

    @property
    def digest(self) -> str:
        """What tells this layout from any other."""
        parts = [digest(shard.header) for shard in self.shards]
        return combined([*parts, *(digest(repr(run).encode()) for run in self.runs)])

    def index(self, run: Run) -> int:
        return self._indices[run[0][:2]]

    def nbytes(self, index: int) -> int:
        return sum(count for _, _, count in map(self.place, self.pieces(self.runs[index])))

    def pieces(self, run: Run) -> list[Piece]:
        """The pieces of a run that have digests, in its order."""
        return [piece for name, start, stop in run for piece in cut(name, start, stop, self._steps.get(name, BLOCK))]

    def place(self, piece: Piece) -> Place:
        """Where a piece lies."""
        name, start, stop = piece
        file, offset = self._places[name]
        width = DTYPE_BYTES[self.infos[name].dtype]
        return file, offset + start * width, (stop - start) * width

    def spans(self, run: Run) -> Iterator[Place]:
        """Where a run lies, neighbouring pieces as one, in its order."""
        held: Place | None = None
        for file, position, count in map(self.place, run):
            if held is not None and held[0] == file and held[1] + held[2] == position:
                held = (file, held[1], held[2] + count)
                continue
            if held is not None:
                yield held
            held = (file, position, count)
        if held is not None:
            yield held

    def entries(self, digests: Mapping[int, Sequence[bytes]]) -> dict[str, TensorEntry]:
        """What the manifest says of each tensor, from the digests of the pieces of every run."""
        pieces: dict[str, list[tuple[int, bytes]]] = {name: [] for name in self._places}
        for index, run in enumerate(self.runs):
            for (name, start, _), each in zip(self.pieces(run), digests[index], strict=True):
                pieces[name].append((start, each))
        return {
            name: TensorEntry(
                file,
                position,
                self.infos[name].dtype,
                self.infos[name].shape,
                combined(each for _, each in sorted(pieces[name])),
                self._steps.get(name, BLOCK),
            )
            for name, (file, position) in sorted(self._places.items())
        }
