"""Merges of CLIP image encoders beside the original fusion-bench on the same pool: wall time, CPU time, memory.

usage: python benchmarks/speed/upstream_clip.py --peer PYTHON [--size tiny|b32] [--images 64] [--rounds 1] [--out FILE]

PYTHON is an interpreter with tests/peers/fusion-bench.txt. The pool is made in a temporary folder: a whole CLIP as the
base, image encoders with random weights (b32: eight of the shape of ViT-B/32, 87 M parameters each, 3 GB on the disk),
random images as tensors. The sides take turns, each a process of its own from start to end, files on the disk. Theirs
runs its own pool and algorithm classes (tests/peers/run_fusion_bench_clip.py); ours is the command, and for RegMean,
whose images come from memory here, `fuse` with `save`. RegMean: α 0.95, all images, batches of 32. Memory is the peak
of the process's anonymous memory, so weights that are mapped from files do not count (TIES of the original takes 21 GB
at b32). Both sides run in float32; beside RegMean stands how far each is from the solution in float64, for two layers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "peers"))
from common import Measured, median, run, write_results

RUNNER = Path(__file__).resolve().parents[2] / "tests" / "peers" / "run_fusion_bench_clip.py"
ROWS, RATIO = 32, 0.95


@dataclass(frozen=True)
class Sides:
    """A method's hyperparameters, as each side calls them."""

    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]


METHODS: Mapping[str, Sides] = {
    "simple_average": Sides({}, {}),
    "task_arithmetic": Sides({"scaling_factor": 0.3}, {"scaling_factor": 0.3}),
    "ties_merging": Sides(
        {"compat": "authors", "scaling_factor": 0.3, "threshold": 20},
        {"scaling_factor": 0.3, "threshold": 20, "merge_func": "sum", "remove_keys": []},
    ),
    "regmean": Sides(
        {"reduce_non_diagonal_ratio": RATIO, "batch_size": ROWS},
        {
            "reduce_non_diagonal_ratio": RATIO, "weight_transpose": True, "exclude_param_names_regex": [],
            "dataloader_kwargs": {"batch_size": ROWS, "num_workers": 0},
        },
    ),
}  # fmt: skip


def regmean(pool: Path, out: Path, examples: int) -> None:
    """Our side of RegMean, in a process of its own."""
    from peer_clip_pool import IMAGES, Pixels

    from fusion_bench import fuse, open_modelpool, save
    from fusion_bench.build import build
    from fusion_bench.method import method_class

    opened = open_modelpool({"type": "folder", "path": str(pool), "part": "vision"})
    method = build(method_class("regmean"), {**METHODS["regmean"].ours, "examples": examples}, "method")
    data = {task: Pixels(pool / IMAGES, task) for task in opened.models}
    save(fuse(method, opened, data=data), out, threads=len(os.sched_getaffinity(0)))


def ours(method: str, pool: Path, out: Path, images: int) -> list[str]:
    if method == "regmean":
        return [sys.executable, str(Path(__file__).resolve()), "--regmean", str(pool), str(out), str(images)]
    words = [f"method.{key}={value}" for key, value in METHODS[method].ours.items()]
    return [
        sys.executable, "-m", "fusion_bench", f"method={method}", *words, "modelpool=folder", "modelpool.part=vision",
        f'modelpool.path="{pool}"', f'save_model="{out}"', "progress=false",
    ]  # fmt: skip


def theirs(method: str, pool: Path, scratch: Path, images: int, python: Path) -> list[str]:
    parameters = {**METHODS[method].theirs, **({"num_regmean_examples": images} if method == "regmean" else {})}
    case = {"id": "theirs", "pool": str(pool), "method": method, "parameters": parameters}
    (scratch / "cases.json").write_text(json.dumps([case]), encoding="utf-8")
    return [str(python), "-I", str(RUNNER), str(scratch)]


def their_notes(scratch: Path) -> dict[str, Any]:
    """What the peer tells of its run; RuntimeError where it failed."""
    notes: dict[str, Any] = json.loads((scratch / "notes.json").read_text(encoding="utf-8"))
    if "error" in notes["cases"]["theirs"]:
        raise RuntimeError(notes["cases"]["theirs"]["error"])
    return notes


def figures(runs: list[Measured]) -> dict[str, float]:
    return {
        "wall_s": median([m.wall for m in runs]),
        "cpu_s": median([m.cpu for m in runs]),
        "peak_anonymous_mb": round(max(m.anonymous_mb for m in runs)),
    }


def ratio(one: list[float], other: list[float]) -> float:
    return round(median(one) / median(other), 2)


def apart(one: Path, other: Path) -> float:
    """The largest difference in any tensor, as a share of the largest magnitude in it: unequal work is seen."""
    from safetensors import safe_open

    largest = 0.0
    with safe_open(one / "model.safetensors", "pt") as left, safe_open(other / "model.safetensors", "pt") as right:
        # A tower that came out of a whole CLIP is saved with a prefix.
        names = {name.removeprefix("vision_model."): name for name in right.keys()}  # noqa: SIM118
        if set(names) != set(left.keys()):
            raise RuntimeError(f"{one} and {other} hold different tensors")
        for name, stored in names.items():
            a, b = left.get_tensor(name).double(), right.get_tensor(stored).double()
            largest = max(largest, float((a - b).abs().max() / b.abs().max()))
    return largest


def main() -> None:
    from peer_clip_pool import SIZES
    from upstream_clip_exact import errors

    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", type=Path, required=True, help="the Python that has the original fusion-bench")
    parser.add_argument("--size", choices=tuple(SIZES), default="b32")
    parser.add_argument("--images", type=int, default=64, help="of each task")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "upstream_clip.json")
    arguments = parser.parse_args()
    # Not resolved: in an environment bin/python is a link, and its own place is what makes it that environment's.
    python = arguments.peer.absolute()
    os.environ["HF_HUB_OFFLINE"] = "1"
    results: dict[str, Any] = {"size": arguments.size, "images": arguments.images, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        scratch = Path(folder)
        os.environ["FUSION_BENCH_CACHE"] = str(scratch / "cache")
        pool, here, there = scratch / "pool", scratch / "ours", scratch / "theirs"
        # In a process of its own: memory of this one is not to be missing later.
        subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--make", str(pool), arguments.size, str(arguments.images)],
            check=True, capture_output=True,
        )  # fmt: skip
        results["models"] = SIZES[arguments.size].models
        results["bytes_of_a_model"] = (pool / "task0" / "model.safetensors").stat().st_size
        for method in arguments.methods:
            runs: dict[str, list[Measured]] = {"ours": [], "theirs": []}
            for _ in range(arguments.rounds):
                for out in (here, there, scratch / "outputs", scratch / "cache"):
                    shutil.rmtree(out, ignore_errors=True)
                command = theirs(method, pool, scratch, arguments.images, python)
                runs["theirs"].append(run(command, scratch))
                notes = their_notes(scratch)
                runs["ours"].append(run(ours(method, pool, here, arguments.images), scratch))
            results["peer"] = notes["versions"]
            results[method] = {
                "fusion_bench": figures(runs["ours"]),
                "original": {**figures(runs["theirs"]), "of_it_fusing_s": round(notes["cases"]["theirs"]["fuse_s"], 3)},
                "times_faster": ratio([m.wall for m in runs["theirs"]], [m.wall for m in runs["ours"]]),
                "times_smaller": ratio(
                    [m.anonymous_mb for m in runs["theirs"]], [m.anonymous_mb for m in runs["ours"]]
                ),
                "largest_difference": apart(here, there),
            }
            if method == "regmean":
                at = SIZES[arguments.size].layers // 4
                results[method]["from_float64"] = errors(pool, {"fusion_bench": here, "original": there}, RATIO, at)
            print(method, json.dumps(results[method]), flush=True)
    write_results(arguments.out, results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--regmean"]:
        regmean(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["--make"]:
        from peer_clip_pool import SIZES, make

        make(Path(sys.argv[2]), replace(SIZES[sys.argv[3]], images=int(sys.argv[4])))
    else:
        main()
