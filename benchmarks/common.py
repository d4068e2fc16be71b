"""What the benchmark scripts share: running commands under a meter, medians, results with their command."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One run of a command: seconds of wall and CPU time, peak anonymous memory of its process in MB."""

    wall: float
    cpu: float
    anonymous_mb: float


def run(command: Sequence[str], cwd: Path | None = None) -> Measured:
    """Runs a command to its end; RuntimeError with its output where it fails. Memory is sampled every 20 ms."""
    before = os.times()
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous_kb(process.pid))
        time.sleep(0.02)
    wall = time.perf_counter() - started
    after = os.times()
    output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{output}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(wall, cpu, peak * 1024 / 1e6)


def _anonymous_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def drop(files: list[Path]) -> None:
    """Has the kernel forget the contents of files, so that the next reader goes to the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def median(values: Sequence[float]) -> float:
    """The median, to a millisecond."""
    return round(statistics.median(values), 3)


def write_results(file: Path, results: dict[str, Any]) -> None:
    """Saves results with the command that made them and what they ran on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        # Folders of one machine say nothing to others: their names will do.
        "command": " ".join(["python", *(Path(w).name if w.startswith("/") else w for w in sys.argv)]),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
    }
    file.write_text(json.dumps({**facts, **results}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {file}")
