"""Handing written data to the disk while more is computed."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_FLUSH_BYTES = 64 * 2**20


class Flusher:
    """Has the disk take what was written while more is computed, instead of all of it at the end."""

    def __init__(self) -> None:
        self._due: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._unsynced = 0
        self._lock = threading.Lock()

    def wrote(self, descriptor: int, count: int) -> None:
        with self._lock:
            self._unsynced += count
            due = self._unsynced >= _FLUSH_BYTES
            self._unsynced = 0 if due else self._unsynced
        if due:
            self._due.put(descriptor)

    def run(self) -> None:
        while (descriptor := self._due.get()) is not None:
            # A failure here is met again by the sync at the end, which reports it.
            with suppress(OSError):
                os.fdatasync(descriptor)

    def stop(self) -> None:
        self._due.put(None)


@contextmanager
def flushing() -> Iterator[Flusher]:
    """A flusher at work; on leaving, all it was told of has been handed to the disk."""
    flusher = Flusher()
    worker = threading.Thread(target=flusher.run, name="flusher", daemon=True)
    worker.start()
    try:
        yield flusher
    finally:
        flusher.stop()
        worker.join()
