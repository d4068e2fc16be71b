"""Progress of long work: what, how much, how long left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[float], None]


class Progress:
    """Shows bars on a terminal, or a line every `interval` seconds elsewhere; `enabled=False` shows nothing.

    Thread-safe: the `advance` that `bar` yields may be called from workers.
    """

    def __init__(self, enabled: bool = True, interval: float = 15.0) -> None:
        self.enabled = enabled
        self.interval = interval

    @contextmanager
    def bar(self, what: str, total: float, unit: str = "") -> Iterator[Advance]:
        """A bar named `what` over `total` units (``"B"`` prints as bytes); yields the function that advances it."""
        if not self.enabled:
            yield lambda amount: None
        elif sys.stderr.isatty():
            with self._rich(what, total, unit) as advance:
                yield advance
        else:
            yield _lines(what, total, unit, self.interval)

    @contextmanager
    def _rich(self, what: str, total: float, unit: str) -> Iterator[Advance]:
        from rich import progress as rp
        from rich.console import Console

        amount: list[rp.ProgressColumn] = (
            [rp.DownloadColumn(), rp.TransferSpeedColumn()]
            if unit == "B"
            else [rp.MofNCompleteColumn(), rp.TextColumn(unit)]
        )
        columns = [rp.TextColumn("{task.description}"), rp.BarColumn(), *amount, rp.TimeRemainingColumn()]
        with rp.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(what, total=total)
            yield lambda done: bars.advance(task, done)


def _lines(what: str, total: float, unit: str, interval: float) -> Advance:
    started = last = time.monotonic()
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last < interval or not total:
            return
        last = now
        left = (now - started) * (total - done) / max(done, 1e-9)
        print(
            f"{what}: {_amount(done, unit)} of {_amount(total, unit)}, {left:.0f} s left", file=sys.stderr, flush=True
        )

    return advance


def _amount(value: float, unit: str) -> str:
    return f"{value / 1e9:.2f} GB" if unit == "B" else f"{value:g} {unit}".rstrip()
