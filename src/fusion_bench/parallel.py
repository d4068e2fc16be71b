"""Parallelism over independent pieces of work, with results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch operations inside run on the calling thread alone.

    A kernel that is split among threads rounds differently at the seams, so a result would depend on the machine.
    """
    import torch

    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch operations that the calling thread begins inside may use `count` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ordered_map(
    visit: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    expect: Callable[[Item], None] | None = None,
) -> Iterator[Result]:
    """`visit(item)` for every item on `threads` workers; results come in the order of the items.

    A bounded number of items is under way at once; `expect` is told of each when it is queued. The first exception
    cancels what has not begun and is raised.
    """
    window: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max(1, threads), initializer=_limit_torch)
    try:
        for item in items:
            if expect is not None:
                expect(item)
            window.append(pool.submit(visit, item))
            if len(window) >= 4 * max(1, threads):
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        for future in window:
            future.cancel()
        pool.shutdown(wait=True, cancel_futures=True)


def _limit_torch() -> None:
    import torch

    torch.set_num_threads(1)
