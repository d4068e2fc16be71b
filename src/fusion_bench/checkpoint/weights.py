"""Filling weights files run by run, on several threads, with digests taken on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_bench.checkpoint.base import Checkpoint, Run
from fusion_bench.checkpoint.digests import digest, digests_of
from fusion_bench.checkpoint.dtypes import torch_dtype
from fusion_bench.checkpoint.flusher import flushing
from fusion_bench.checkpoint.layout import Layout
from fusion_bench.checkpoint.shards import Shard
from fusion_bench.checkpoint.staging import Staging
from fusion_bench.checkpoint.stream import for_each_run
from fusion_bench.progress import Advance, Progress

if TYPE_CHECKING:
    import torch


def write_tensors(
    checkpoint: Checkpoint, layout: Layout, staging: Staging, threads: int, progress: Progress
) -> tuple[dict[int, Sequence[bytes]], int]:
    """Fills the files of a layout with the tensors of a checkpoint, but for what an earlier run wrote.

    Returns the digests of the pieces of every run, and how many bytes were there already. Memory: `threads` runs.
    """
    with ExitStack() as stack:
        total = sum(info.nbytes for info in layout.infos.values())
        advance = stack.enter_context(progress.bar("writing", total, "B"))
        descriptors = {s.file: stack.enter_context(_opened(staging.path(s.file), s)) for s in layout.shards}
        digests = _still_right(layout, staging, descriptors, threads, advance)
        reused = sum(layout.nbytes(index) for index in digests)
        # Entered last, so that it has ended before the files are synced and closed.
        flusher = stack.enter_context(flushing())

        def write(run: Run, values: torch.Tensor) -> None:
            import torch

            dtype = torch_dtype(layout.infos[run[0][0]].dtype)
            data = values.to(dtype).contiguous().view(torch.uint8).numpy().data
            done = 0
            for file, position, count in layout.spans(run):
                _write(descriptors[file], data[done : done + count], position)
                flusher.wrote(descriptors[file], count)
                done += count
            found, done = [], 0
            for _, _, count in map(layout.place, layout.pieces(run)):
                found.append(digest(data[done : done + count]))
                done += count
            index = layout.index(run)
            staging.journal.add(index, found)
            digests[index] = found
            advance(done)

        left = [run for index, run in enumerate(layout.runs) if index not in digests]
        for_each_run(checkpoint, left, write, threads=threads)
    return digests, reused


def _still_right(
    layout: Layout, staging: Staging, descriptors: Mapping[str, int], threads: int, advance: Advance
) -> dict[int, Sequence[bytes]]:
    """The runs that an earlier run wrote, read back: after a power loss a journal may promise what the disk lost."""
    found: dict[int, Sequence[bytes]] = {}
    journal = {i: digests for i, digests in staging.journal.read().items() if 0 <= i < len(layout.runs)}
    places = {index: [layout.place(piece) for piece in layout.pieces(layout.runs[index])] for index in journal}
    extents = [(descriptors[file], at, count) for index in journal for file, at, count in places[index]]
    read = iter(digests_of(extents, threads))
    for index, digests in journal.items():
        if [next(read) for _ in places[index]] == digests:
            found[index] = digests
            advance(sum(count for _, _, count in places[index]))
    return found


@contextmanager
def _opened(path: Path, shard: Shard) -> Iterator[int]:
    """The file of a shard with its header in place and its full length; synced to disk when all went well."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(descriptor, shard.size)
        _write(descriptor, memoryview(shard.header), 0)
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: memoryview, position: int) -> None:
    done = 0
    while done < data.nbytes:
        done += os.pwrite(descriptor, data[done:], position + done)
