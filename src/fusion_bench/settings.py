"""How a run is carried out: device, precision, parallelism, seed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Settings:
    """Choices that may change speed and rounding but never what is computed.

    `device`: ``auto`` takes the first GPU where there is one; `dtype`: precision of evaluation; `batch_size`: examples
    a batch, or ``auto``; `threads`: worker threads, 0 for one a core.
    """

    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    batch_size: int | Literal["auto"] = "auto"
    threads: int = 0
    seed: int = 42

    @property
    def workers(self) -> int:
        """Worker threads: what was asked for, else the cores this process may use."""
        if self.threads:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
