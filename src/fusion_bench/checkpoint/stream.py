"""Slices of many tensors, visited by several threads in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.dtypes import torch_dtype

if TYPE_CHECKING:
    import torch

# Entries a slice. Slices start at multiples of it, whatever the threads or the memory: the position of an entry inside
# its slice decides which lane of a vector instruction rounds it, so cutting elsewhere could change the last bit.
BLOCK = 2**20

Visit = Callable[[str, int, "torch.Tensor"], None]


def for_each_slice(
    checkpoint: Checkpoint, names: Iterable[str], visit: Visit, *, threads: int = 1, block: int = BLOCK
) -> None:
    """Calls ``visit(name, start, values)`` for every slice of every named tensor, in no particular order.

    `values` holds at most `block` entries; it may be overwritten by the visitor and is reused once the visitor returns.
    At most `threads` slices are held at a time. torch computes with one thread per worker meanwhile: results must not
    depend on how many there are. The first exception stops all workers after their current slice and is raised.
    """
    import torch

    tasks = _Tasks(_slices(checkpoint, names, block))
    before = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(1)
        buffer = _Buffer(checkpoint, block)
        try:
            for name, start, stop in tasks:
                visit(name, start, buffer.read(name, start, stop))
        except BaseException:
            tasks.stop()
            raise

    try:
        if threads <= 1:
            work()
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="slices") as pool:
            workers = [pool.submit(work) for _ in range(threads)]
            try:
                wait(workers, return_when=FIRST_EXCEPTION)
            except BaseException:  # KeyboardInterrupt arrives here, in the main thread
                tasks.stop()
                raise
            for worker in workers:
                worker.result()
    finally:
        torch.set_num_threads(before)


def _slices(checkpoint: Checkpoint, names: Iterable[str], block: int) -> Iterator[tuple[str, int, int]]:
    for name in names:
        numel = checkpoint.info(name).numel
        for start in range(0, numel, block):
            yield name, start, min(start + block, numel)


class _Tasks:
    """An iterator that several threads draw from, until it is stopped."""

    def __init__(self, tasks: Iterator[tuple[str, int, int]]) -> None:
        self._tasks = tasks
        self._lock = threading.Lock()
        self._stopped = False

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return self

    def __next__(self) -> tuple[str, int, int]:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._tasks)

    def stop(self) -> None:
        self._stopped = True


class _Buffer:
    """One worker's memory. Files are read into it over and over: fresh memory would cost a page fault every 4 KiB."""

    def __init__(self, checkpoint: Checkpoint, block: int) -> None:
        self._checkpoint = checkpoint
        self._block = block
        # Without a reader of its own, read_into copies what read makes, and the buffer gains nothing.
        self._in_place = type(checkpoint).read_into is not Checkpoint.read_into
        self._buffers: dict[str, torch.Tensor] = {}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        import torch

        if not self._in_place:
            return self._checkpoint.read(name, start, stop)
        dtype = self._checkpoint.info(name).dtype
        if dtype not in self._buffers:
            self._buffers[dtype] = torch.empty(self._block, dtype=torch_dtype(dtype))
        out = self._buffers[dtype][: stop - start]
        self._checkpoint.read_into(name, start, out)
        return out
