"""Ending in good order when the system asks a run to stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def continuable(out: Path) -> Iterator[None]:
    """While a model is written to `out`: SIGTERM ends the run as Ctrl-C does, and either says what is kept."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        from fusion_bench.checkpoint.staging import kept_note

        note = kept_note(out)
        if note:
            print(f"{out}: not finished. {note}", file=sys.stderr)
        raise
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)
