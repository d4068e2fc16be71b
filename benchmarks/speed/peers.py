"""Merges from disk to disk beside mergekit on the same pool: wall time, CPU time, memory.

usage: python benchmarks/speed/peers.py POOL --mergekit BIN [--rounds 3] [--methods linear ties] [--cold] [--out FILE]

POOL holds base/ and full models; BIN is the folder of mergekit's `mergekit-yaml` and `python`. The sides take turns.
Both end with their files on the disk: fusion_bench syncs what it writes, and for mergekit syncing its output is part of
the span. Memory is the peak of anonymous memory of the command's own process. For ties, TIES with the exact threshold
over the whole model is timed beside the variant of mergekit, which has one for each tensor. --cold drops the pool's
files from the page cache before each command.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Measured, drop, median, run, write_results

LAMBDA, DENSITY = 0.3, 0.2
METHODS = ("linear", "task_arithmetic", "ties")

# Runs mergekit's command in this very process, so that its memory is seen, then puts its files on the disk.
SYNCED = """
import os, sys
from mergekit.scripts.run_yaml import main
config, out = sys.argv[1], sys.argv[2]
main([config, out, *sys.argv[3:]], standalone_mode=False)
for name in sorted(os.listdir(out)):
    descriptor = os.open(os.path.join(out, name), os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
descriptor = os.open(out, os.O_RDONLY)
os.fsync(descriptor)
os.close(descriptor)
"""


def config(method: str, base: Path, experts: list[Path], dtype: str) -> str:
    """A merge of all experts for mergekit."""
    lines = [f"merge_method: {method}", f"dtype: {dtype}"]
    if method != "linear":
        lines += [f"base_model: {json.dumps(str(base))}", "parameters:", f"  lambda: {LAMBDA}", "  normalize: true"]
    lines.append("models:")
    for expert in experts:
        lines += [f"  - model: {json.dumps(str(expert))}", "    parameters:", "      weight: 1.0"]
        if method == "ties":
            lines.append(f"      density: {DENSITY}")
    return "\n".join(lines) + "\n"


def ours(method: str, pool: Path, count: int, out: Path) -> list[str]:
    """The command for the same formula; mergekit's normalization of task arithmetic divides by the number of models."""
    words = {
        "linear": ["method=simple_average"],
        "task_arithmetic": ["method=task_arithmetic", f"method.scaling_factor={LAMBDA / count}"],
        "ties_whole": ["method=ties_merging"],
        "ties": [
            "method=ties_merging", "method.compat=mergekit",
            f"method.scaling_factor={LAMBDA}", f"method.density={DENSITY}",
        ],
    }  # fmt: skip
    return [
        "fusion_bench", *words[method], "modelpool=folder",
        f'modelpool.path="{pool}"', f'save_model="{out}"', "progress=false",
    ]  # fmt: skip


def figures(runs: list[Measured]) -> dict[str, float]:
    return {
        "wall_s": median([m.wall for m in runs]),
        "cpu_s": median([m.cpu for m in runs]),
        "peak_anonymous_mb": round(max(m.anonymous_mb for m in runs)),
    }


def largest_difference(one: Path, other: Path) -> float:
    """The largest difference between two results, so that unequal work does not go unseen."""
    from fusion_bench.checkpoint.open import open_checkpoint

    left, right = open_checkpoint(one), open_checkpoint(other)
    shared = sorted(set(left) & set(right))
    if not shared:
        raise RuntimeError(f"{one} and {other} share no tensor")
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in shared)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pool", type=Path)
    parser.add_argument("--mergekit", type=Path, required=True, help="the bin folder of mergekit's environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--dtype", default="float32", help="of the pool")
    parser.add_argument("--option", action="append", default=[], help="another option of mergekit-yaml")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "peers.json")
    arguments = parser.parse_args()
    pool = arguments.pool.absolute()
    # Not resolved: in an environment bin/python is a link, and its own place is what makes it that environment's.
    python = arguments.mergekit.absolute() / "python"
    experts = sorted(p for p in pool.iterdir() if p.is_dir() and p.name != "base")
    asked = subprocess.run(
        [python, "-c", "from importlib.metadata import version as v; print(v('mergekit'), v('torch'))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    results: dict[str, object] = {
        "models": len(experts),
        "bytes_read": sum(f.stat().st_size for e in experts for f in e.glob("*.safetensors")),
        "rounds": arguments.rounds,
        "page_cache": "cold" if arguments.cold else "warm",
        "mergekit": asked.stdout.split()[0],
        "mergekit_torch": asked.stdout.split()[1],
        "mergekit_options": arguments.option,
    }

    def forget() -> None:
        if arguments.cold:
            drop(sorted(pool.rglob("*.safetensors")))

    with tempfile.TemporaryDirectory(dir=pool.parent) as folder:
        scratch = Path(folder)
        (scratch / "synced.py").write_text(SYNCED, encoding="utf-8")
        for method in arguments.methods:
            file = scratch / f"{method}.yml"
            file.write_text(config(method, pool / "base", experts, arguments.dtype), encoding="utf-8")
            theirs: list[Measured] = []
            mine: list[Measured] = []
            whole: list[Measured] = []
            there, here = scratch / "theirs", scratch / "ours"
            command = [
                str(python), str(scratch / "synced.py"), str(file), str(there),
                "--quiet", "--no-write-model-card", *arguments.option,
            ]  # fmt: skip
            for _ in range(arguments.rounds):
                for out in (there, here):
                    shutil.rmtree(out, ignore_errors=True)
                forget()
                theirs.append(run(command, scratch))
                if method == "ties":
                    forget()
                    whole.append(run(ours("ties_whole", pool, len(experts), here), scratch))
                    shutil.rmtree(here)
                forget()
                mine.append(run(ours(method, pool, len(experts), here), scratch))
            apart = largest_difference(there, here)
            times = round(median([m.wall for m in theirs]) / median([m.wall for m in mine]), 2)
            results[method] = {
                "fusion_bench": figures(mine),
                "mergekit": figures(theirs),
                "times_faster": times,
                "largest_difference": apart,
            }
            if whole:
                faster = round(median([m.wall for m in theirs]) / median([m.wall for m in whole]), 2)
                results["ties, threshold over the model"] = {"fusion_bench": figures(whole), "times_faster": faster}
                print(f"ties over the model: {figures(whole)}  {faster}x")
            print(f"{method:16} fusion_bench {figures(mine)}  mergekit {figures(theirs)}  {times}x, {apart:.1e} apart")
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
