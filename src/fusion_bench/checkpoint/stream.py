"""Going through a checkpoint in bounded memory, run by run, on several threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from fusion_bench.checkpoint.base import BLOCK, Checkpoint, Run
from fusion_bench.checkpoint.dtypes import torch_dtype

if TYPE_CHECKING:
    import torch

__all__ = ["BLOCK", "SMALL", "Run", "for_each_run", "for_each_slice", "runs_of"]

# Tensors of at most so many entries are gathered into slabs of at most _SLAB, since each access costs as much as
# thousands of entries do.
SMALL = 2**15
_SLAB = 2**18

Visit = Callable[[str, int, "torch.Tensor"], None]
VisitRun = Callable[[Run, "torch.Tensor"], None]


def runs_of(checkpoint: Checkpoint, names: Iterable[str], block: int | None = None) -> list[Run]:
    """The entries of the named tensors, in this order, in pieces that are computed and written together.

    A large tensor is cut at multiples of `checkpoint.step(name)`, neighbouring small ones of one dtype share a run;
    where `block` is given, all are cut at its multiples. Depends on names, shapes and dtypes alone.
    """
    runs: list[Run] = []
    slab: list[tuple[str, int, int]] = []
    held, slab_dtype = 0, ""

    def close() -> None:
        nonlocal slab, held
        if slab:
            runs.append(tuple(slab))
        slab, held = [], 0

    for name in names:
        info = checkpoint.info(name)
        numel = info.numel
        if numel <= SMALL and block is None:
            if held + numel > _SLAB or info.dtype != slab_dtype:
                close()
            slab.append((name, 0, numel))
            held, slab_dtype = held + numel, info.dtype
            continue
        close()
        step = block or checkpoint.step(name)
        runs += [((name, start, min(start + step, numel)),) for start in range(0, numel, step)]
    close()
    return runs


def for_each_run(checkpoint: Checkpoint, runs: Iterable[Run], visit: VisitRun, *, threads: int = 1) -> None:
    """Calls ``visit(run, values)`` for every run, in no particular order; `values` are its entries, 1-D.

    `values` may be overwritten by the visitor and are reused once the visitor returns. At most `threads` runs are held
    at a time. torch computes with one thread per worker meanwhile: results must not depend on how many there are. The
    first exception stops all workers after their current run and is raised.
    """
    import torch

    tasks = _Tasks(iter(runs), checkpoint.expect, ahead=2 * threads)
    before = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(1)
        buffer = _Buffer(checkpoint)
        try:
            for run in tasks:
                visit(run, buffer.read(run))
        except BaseException:
            tasks.stop()
            raise

    try:
        if threads <= 1:
            work()
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="runs") as pool:
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


def for_each_slice(
    checkpoint: Checkpoint, names: Sequence[str], visit: Visit, *, threads: int = 1, block: int | None = None
) -> None:
    """Calls ``visit(name, start, values)`` for every slice of every named tensor; the rules of `for_each_run`."""

    def each(run: Run, values: torch.Tensor) -> None:
        done = 0
        for name, start, stop in run:
            visit(name, start, values[done : done + stop - start])
            done += stop - start

    for_each_run(checkpoint, runs_of(checkpoint, names, block), each, threads=threads)


class _Tasks:
    """Runs that several threads draw, until it is stopped; `expect` is told of each a little before."""

    def __init__(self, runs: Iterator[Run], expect: Callable[[Run], None], ahead: int) -> None:
        self._runs = runs
        self._expect = expect
        self._ahead = ahead
        self._next: deque[Run] = deque()
        self._lock = threading.Lock()
        self._stopped = False

    def __iter__(self) -> Iterator[Run]:
        return self

    def __next__(self) -> Run:
        with self._lock:
            if self._stopped:
                raise StopIteration
            while len(self._next) <= self._ahead and (run := next(self._runs, None)) is not None:
                self._expect(run)
                self._next.append(run)
            if not self._next:
                raise StopIteration
            return self._next.popleft()

    def stop(self) -> None:
        self._stopped = True


class _Buffer:
    """One worker's memory. Files are read into it over and over: fresh memory would cost a page fault every 4 KiB."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        # Without a reader of its own, read_into copies what read makes, and the buffer gains nothing.
        self._in_place = type(checkpoint).read_into is not Checkpoint.read_into
        self._buffers: dict[str, torch.Tensor] = {}

    def read(self, run: Run) -> torch.Tensor:
        import torch

        if not self._in_place and len(run) == 1:
            return self._checkpoint.read(*run[0])
        dtype = self._checkpoint.info(run[0][0]).dtype
        numel = sum(stop - start for _, start, stop in run)
        if numel > BLOCK:
            out = torch.empty(numel, dtype=torch_dtype(dtype))
        else:
            if dtype not in self._buffers:
                self._buffers[dtype] = torch.empty(BLOCK, dtype=torch_dtype(dtype))
            out = self._buffers[dtype][:numel]
        self._checkpoint.read_run(run, out)
        return out
