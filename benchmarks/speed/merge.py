"""Wall time and memory of merges from disk to disk, beside the time that the disk alone takes.

usage: python benchmarks/speed/merge.py POOL [--rounds 5] [--cold] [--arithmetic] [--out FILE]

POOL holds base/ and full models. Each round measures, one after the other: reading the experts once (positioned reads
into reused buffers, one thread a core) plus writing and syncing a file of the result's size; then each command, and the
same command with dry_run=true. Start-up is the wall time of the latter and of `import torch`, which a dry run leaves
out. The ratio is (wall - start-up) / limit, by medians over the rounds.

--cold drops the pool's files from the page cache before each reading and each command. --arithmetic measures, too, what
each method takes when the models lie in memory and nothing is written: what the processor alone needs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Measured, drop, median, run, write_results

METHODS = ("simple_average", "task_arithmetic", "ties_merging")
TARGETS = {"simple_average": 1.5, "task_arithmetic": 1.5, "ties_merging": 4.0}
CHUNK = 4 << 20


def read_once(files: list[Path]) -> float:
    """Seconds to read all files once."""

    def work(mine: list[Path]) -> None:
        buffer = memoryview(bytearray(CHUNK))
        for file in mine:
            descriptor = os.open(file, os.O_RDONLY)
            position = 0
            while count := os.preadv(descriptor, [buffer], position):
                position += count
            os.close(descriptor)

    threads = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    workers = [threading.Thread(target=work, args=(files[i::threads],)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


def write_once(folder: Path, size: int) -> float:
    """Seconds to write and sync one file of `size` bytes."""
    data = os.urandom(CHUNK)
    file = folder / "written"
    started = time.perf_counter()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    position = 0
    while position < size:
        position += os.pwrite(descriptor, data[: size - position], position)
    os.fsync(descriptor)
    os.close(descriptor)
    taken = time.perf_counter() - started
    file.unlink()
    return taken


def arithmetic(pool: Path, methods: list[str]) -> dict[str, float]:
    """Seconds that each merge takes with all models in memory and no output."""
    from fusion_bench.api import fuse_pool
    from fusion_bench.checkpoint.memory import MemoryCheckpoint
    from fusion_bench.checkpoint.open import open_checkpoint
    from fusion_bench.checkpoint.stream import for_each_run, runs_of
    from fusion_bench.method import method_class
    from fusion_bench.modelpool.base import ModelPool

    members = {}
    for folder in sorted(p for p in pool.iterdir() if p.is_dir()):
        stored = open_checkpoint(folder)
        members[folder.name] = MemoryCheckpoint({name: stored[name] for name in stored}, dict(stored.config))
    base = members.pop("base")
    threads = len(os.sched_getaffinity(0))
    found = {}
    for method in methods:
        merged: Any = fuse_pool(method_class(method)(), ModelPool(members, base), threads=threads)
        started = time.perf_counter()
        runs = runs_of(merged.checkpoint, list(merged.checkpoint))
        for_each_run(merged.checkpoint, runs, lambda run, values: None, threads=threads)
        found[method] = round(time.perf_counter() - started, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--arithmetic", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "merge.json")
    arguments = parser.parse_args()
    pool = arguments.pool.absolute()
    experts = [f for p in sorted(pool.iterdir()) if p.name != "base" for f in sorted(p.glob("*.safetensors"))]
    size = sum(f.stat().st_size for f in (pool / "base").glob("*.safetensors"))
    base = list((pool / "base").glob("*.safetensors"))

    def forget() -> None:
        if arguments.cold:
            drop([*experts, *base])

    imports: list[float] = []
    reads: list[float] = []
    writes: list[float] = []
    runs: dict[str, list[Measured]] = {m: [] for m in arguments.methods}
    dry: dict[str, list[Measured]] = {m: [] for m in arguments.methods}
    with tempfile.TemporaryDirectory(dir=pool.parent) as scratch:
        out = Path(scratch) / "merged"
        for _ in range(arguments.rounds):
            imports.append(run([sys.executable, "-c", "import torch"]).wall)
            imports[-1] -= run([sys.executable, "-c", "pass"]).wall
            forget()
            reads.append(read_once(experts))
            writes.append(write_once(Path(scratch), size))
            for method in arguments.methods:
                command = [
                    "fusion_bench", f"method={method}", "modelpool=folder", f'modelpool.path="{pool}"',
                    f'save_model="{out}"', "progress=false",
                ]  # fmt: skip
                dry[method].append(run([*command, "dry_run=true"], Path(scratch)))
                forget()
                runs[method].append(run(command, Path(scratch)))
                shutil.rmtree(out)
    limit = median([r + w for r, w in zip(reads, writes, strict=True)])
    results: dict[str, object] = {
        "models": len(experts),
        "bytes_read": sum(f.stat().st_size for f in experts),
        "bytes_written": size,
        "rounds": arguments.rounds,
        "page_cache": "cold" if arguments.cold else "warm",
        "import_torch_s": median(imports),
        "read_s": median(reads),
        "write_and_sync_s": median(writes),
        "limit_s": limit,
    }
    print(f"limit {limit:.2f} s (read {median(reads):.2f}, write and sync {median(writes):.2f})")
    for method in arguments.methods:
        wall = median([m.wall for m in runs[method]])
        start = round(median([m.wall for m in dry[method]]) + median(imports), 3)
        ratio = round((wall - start) / limit, 2)
        memory = round(max(m.anonymous_mb for m in runs[method]))
        results[method] = {
            "wall_s": wall,
            "start_up_s": start,
            "cpu_s": median([m.cpu for m in runs[method]]),
            "ratio": ratio,
            "target": TARGETS.get(method),
            "peak_anonymous_mb": memory,
        }
        target = f" (target {TARGETS[method]:g})" if method in TARGETS else ""
        print(f"{method:16} wall {wall:6.2f} s, start-up {start:.2f}, ratio {ratio:.2f}{target}, anonymous {memory} MB")
    if arguments.arithmetic:
        results["arithmetic_s"] = arithmetic(pool, list(arguments.methods))
        print(f"arithmetic alone: {results['arithmetic_s']}")
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
