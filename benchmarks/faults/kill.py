"""Kills merges at random moments; counts half outputs, and outputs that the same command then finishes unlike others.

usage: python benchmarks/faults/kill.py [POOL] [--kills 200] [--methods simple_average ties_merging] [--out FILE]

POOL holds base/ and models; without one, a pool of six models of 200 MB each is made for the purpose. The methods, and
for each of them merges into one file and into shards, take turns. Of each, uninterrupted merges give the reference
and their duration, counted from the appearance of DIR/.partial to its disappearance. Then, as often as asked: start the
command, wait for .partial, wait for a moment drawn uniformly from the duration, send SIGKILL. What lies there must not
load as a model unless every digest is right; the same command, run again, must end well, with the manifest (digests of
all tensors and files) and the bytes on disk of the reference. A kill that comes when .partial is gone came after the
merge: it is checked, not counted. Exit status 1 where any of it fails.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import write_results

from fusion_bench.checkpoint.contents import PARTIAL
from fusion_bench.checkpoint.manifest import MANIFEST
from fusion_bench.checkpoint.verify import verify
from fusion_bench.errors import OutputError

WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
POLL_S = 0.0005


class Merge:
    """One command: its arguments, the manifest of an uninterrupted run, seconds from .partial to the end."""

    def __init__(self, name: str, arguments: list[str], scratch: Path) -> None:
        self.name, self.arguments, self.scratch = name, arguments, scratch
        self.manifest = b""
        self.seconds = 0.0

    def start(self, out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fusion_bench", *self.arguments, f'save_model="{out}"', "progress=false"]
        return subprocess.Popen(command, cwd=self.scratch, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(self, out: Path) -> str:
        """Runs the command to its end; what it said."""
        process = self.start(out)
        said = process.communicate()[1]
        if process.returncode:
            raise RuntimeError(f"exit status {process.returncode}: {said}")
        return said

    def measure(self, rounds: int) -> None:
        out = self.scratch / "reference"
        times = []
        for _ in range(rounds):
            shutil.rmtree(out, ignore_errors=True)
            process = self.start(out)
            began = wait_for(out / PARTIAL, process)
            while (out / PARTIAL).exists() and process.poll() is None:
                time.sleep(POLL_S)
            times.append(time.perf_counter() - began)
            if process.wait():
                raise RuntimeError(process.communicate()[1])
        self.seconds = statistics.median(times)
        self.manifest = (out / MANIFEST).read_bytes()
        shutil.rmtree(out)


def wait_for(path: Path, process: subprocess.Popen[str]) -> float:
    """The time at which `path` appeared; RuntimeError where the process ends without it."""
    while not path.exists():
        if process.poll() is not None:
            raise RuntimeError(f"ended before it began to write: {process.communicate()[1]}")
        time.sleep(POLL_S)
    return time.perf_counter()


def state(out: Path) -> str:
    """`nothing`, `unfinished`, `whole`, or `half`: what a loader could take for a model and is none."""
    if not out.is_dir() or not any(out.iterdir()):
        return "nothing"
    try:
        if verify(out, threads=2).whole:
            return "whole"
    except OutputError:
        return "half"
    weights = {file.name for folder in (out, out / PARTIAL) for each in WEIGHTS for file in folder.glob(each)}
    loadable = "model.safetensors" in weights or ((out / "config.json").exists() and weights)
    return "half" if loadable else "unfinished"


def make_pool(folder: Path) -> None:
    """A base and five models with random weights, 200 MB each."""
    import json

    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    for name in ("base", *(f"expert_{i}" for i in range(5))):
        tensors = {f"layers.{i}.weight": torch.randn(1024, 1200, generator=generator) for i in range(40)}
        tensors |= {f"layers.{i}.bias": torch.randn(1200, generator=generator) for i in range(40)}
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps({"model_type": "none", "layers": 40}))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("pool", type=Path, nargs="?")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=["simple_average", "ties_merging"])
    parser.add_argument("--threads", type=int, default=1, help="one by default: the merge takes longer to be hit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="where pool and outputs are written; removed in the end")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kill.json")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    seen: Counter[str] = Counter()
    faults: list[str] = []
    reused: list[float] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as place:
        scratch = Path(place)
        pool = arguments.pool
        if pool is None:
            make_pool(pool := scratch / "pool")
        pool = pool.absolute()
        size = sum(file.stat().st_size for file in (pool / "base").glob("*.safetensors"))
        common = ["modelpool=folder", f'modelpool.path="{pool}"', f"threads={arguments.threads}"]
        merges = [
            Merge(f"{method} into {name}", [f"method={method}", *common, *more], scratch)
            for method in arguments.methods
            for name, more in (("one file", []), ("shards", [f"shard_size={max(1, size // 4)}"]))
        ]
        for merge in merges:
            merge.measure(rounds=3)
            print(f"{merge.name}: {merge.seconds:.2f} s from the appearance of {PARTIAL} to the end", flush=True)
        out = scratch / "out"
        number, counted = -1, 0
        while counted < arguments.kills:
            number += 1
            merge = merges[number % len(merges)]
            shutil.rmtree(out, ignore_errors=True)
            moment = draw.uniform(0, merge.seconds)
            process = merge.start(out)
            began = wait_for(out / PARTIAL, process)
            time.sleep(max(0.0, began + moment - time.perf_counter()))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            late = not (out / PARTIAL).exists()
            found = state(out)
            seen["half outputs"] += found == "half"
            seen["late" if late else f"{found} after the kill"] += 1
            counted += not late
            if found == "half" or (late and found != "whole"):
                faults.append(f"kill {number}, {merge.name}, {moment:.3f} s: {found}")
            try:
                said = merge.finish(out)
            except RuntimeError as error:
                faults.append(f"kill {number}, {merge.name}, {moment:.3f} s: the same command fails: {error}")
                continue
            there = re.search(r"\((\S+) GB of it were there\)", said)
            seen["continued"] += there is not None and not late
            reused += [float(there.group(1)) * 1e9 / size] if there else []
            same = (out / MANIFEST).read_bytes() == merge.manifest
            whole = verify(out, threads=2).whole and not (out / PARTIAL).exists()
            seen["same digests"] += same and whole and not late
            if not (same and whole):
                what = "other digests" if whole else "not whole"
                faults.append(f"kill {number}, {merge.name}, {moment:.3f} s: {what} afterwards")
            if number % 20 == 19:
                print(f"{counted} kills: {dict(sorted(seen.items()))}", flush=True)
    for fault in faults:
        print(fault)
    results: dict[str, object] = {
        "kills": counted,
        "kills_after_the_end_not_counted": seen["late"],
        "half_outputs": seen["half outputs"],
        "same_digests_after_resuming": seen["same digests"],
        "after_the_kill": {word: seen[f"{word} after the kill"] for word in ("nothing", "unfinished", "whole", "half")},
        "continued_with_what_was_there": seen["continued"],
        "share_reused_where_continued": round(statistics.mean(reused), 3) if reused else None,
        "bytes_written": size,
        "merge_s": {merge.name: round(merge.seconds, 3) for merge in merges},
        "faults": faults,
    }
    write_results(arguments.out, results)
    print(
        f"{counted} SIGKILLs: {seen['half outputs']} half outputs, {seen['same digests']} resumes with the same"
        f" digests ({seen['continued']} continued what was there)"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
