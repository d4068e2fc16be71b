"""Pretrained, merged and individual models of a suite, with paired differences between neighbouring rows.

usage: python benchmarks/accuracy/ladder.py SUITE POOL [POOL …] [--split test] [--limit N] [--out FILE]

SUITE: mini-clip_vision, or a task pool's YAML file; each POOL is a folder pool (or ``embedded``), one for each seed of
the recipe. Methods run with their defaults, the ones that look at data on the split that the task pool keeps for them.
A difference is the mean over tasks of the mean difference of right and wrong on the same examples; its standard error
adds the tasks' paired variances. Nothing is chosen by these scores.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

import fusion_bench
from fusion_bench.api import fuse_pool, inputs_of
from fusion_bench.cli.session import build_method
from fusion_bench.fit import fit, pool_fitting
from fusion_bench.method.base import Merged
from fusion_bench.method.fitted import FittedMethod
from fusion_bench.modelpool import open_modelpool
from fusion_bench.settings import Settings
from fusion_bench.taskpool import open_taskpool

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import write_results

LADDER: list[dict[str, Any]] = [
    {"name": "simple_average"},
    {"name": "task_arithmetic"},
    {"name": "ties_merging"},
    {"name": "fisher_merging"},
    {"name": "regmean"},
    {"name": "regmean_plus_plus"},
    {"name": "task_wise_adamerging"},
    {"name": "layer_wise_adamerging"},
    {"name": "layer_wise_adamerging", "plus_plus": True},
    {"name": "tsv_merging"},
    {"name": "iso_c"},
]

Right = dict[str, list[bool]]


def title(method: dict[str, Any]) -> str:
    return " ".join([method["name"], *(f"{k}={v}" for k, v in method.items() if k != "name")])


def right(folder: Path, tasks: Sequence[str]) -> Right:
    """Right and wrong by task, in the order of the examples, out of saved predictions."""
    found: Right = {}
    for task in tasks:
        lines = [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]
        found[task] = [line["output"] == line["target"] for line in lines]
    return found


def difference(one: Right, other: Right) -> tuple[float, float]:
    """Mean over tasks of the mean paired difference, and its standard error."""
    means, variances = [], []
    for task in one:
        gaps = [int(a) - int(b) for a, b in zip(one[task], other[task], strict=True)]
        mean = sum(gaps) / len(gaps)
        means.append(mean)
        variances.append(sum((gap - mean) ** 2 for gap in gaps) / max(1, len(gaps) - 1) / len(gaps))
    return sum(means) / len(means), math.sqrt(sum(variances)) / len(means)


def scored(spec: dict[str, Any], place: str, part: str | None, settings: Settings) -> dict[str, Any]:
    """Every row of one pool: accuracies by task, seconds, right and wrong for the paired differences."""
    source = (
        {"type": "embedded", "name": "mini_clip_vision"} if place == "embedded" else {"type": "folder", "path": place}
    )
    pool = open_modelpool({**source, "part": part})
    taskpool = open_taskpool(spec)
    folders = [model.folder for model in [pool.base, *pool.models.values()] if model is not None and model.folder]
    rows: dict[str, Any] = {}
    rights: dict[str, Right] = {}

    def evaluated(label: str, models: dict[str, Any], began: float) -> None:
        results: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for only, model in models.items():
                chosen = None if only == "" else [only]
                found = taskpool.evaluate(
                    model, settings=settings, tokenizers=folders, only=chosen, predictions=Path(scratch)
                )
                results |= {task: found[task] for task in (chosen or taskpool.tasks)}
            rights[label] = right(Path(scratch), taskpool.tasks)
        failed = {task: r["error"] for task, r in results.items() if "error" in r}
        if failed:
            raise SystemExit(f"{label}: {failed}")
        scores = {task: result["accuracy"] for task, result in results.items()}
        rows[label] = {**scores, "average": sum(scores.values()) / len(scores), "n": results[taskpool.tasks[0]]["n"],
                       "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip
        print(f"{Path(place).name:12} {label:36}", *(f"{100 * v:5.1f}" for v in scores.values()),
              f"{100 * rows[label]['average']:6.2f}  {rows[label]['seconds']} s", flush=True)  # fmt: skip

    evaluated("pretrained", {"": pool.base}, time.perf_counter())
    for values in LADDER:
        began = time.perf_counter()
        method: Any = build_method(values)
        if isinstance(method, FittedMethod):
            data = taskpool.fitting_data(  # type: ignore[attr-defined]
                method.use, list(pool.models), "disjoint", reference=pool.reference, settings=settings,
                tokenizers=folders,
            )  # fmt: skip
            inputs = inputs_of(method, pool, settings.seed, dtype="F32")
            method = fit(method, inputs, pool_fitting(pool, data, settings, cache=False)).method
        fused = fuse_pool(method, pool, seed=settings.seed, dtype="F32")
        assert isinstance(fused, Merged)
        evaluated(title(values), {"": fused.checkpoint}, began)
    evaluated("individual", {task: pool.models[task] for task in taskpool.tasks}, time.perf_counter())
    order = list(rows)
    steps = {}
    for label in order[1:]:
        gap, error = difference(rights[label], rights["pretrained"])
        steps[label] = {"over_pretrained": gap, "standard_error": error}
        before = order[order.index(label) - 1]
        gap, error = difference(rights[label], rights[before])
        steps[label] |= {"over_the_row_before": gap, "its_standard_error": error}
    pairs = {}
    for low, high in (("simple_average", "task_arithmetic"), ("task_arithmetic", "ties_merging"),
                      ("ties_merging", "regmean"), ("ties_merging", "layer_wise_adamerging"),
                      ("regmean", "individual"), ("layer_wise_adamerging", "individual")):  # fmt: skip
        gap, error = difference(rights[high], rights[low])
        pairs[f"{high} - {low}"] = [round(gap, 5), round(error, 5)]
    return {"rows": rows, "differences": steps, "claimed_order": pairs}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("suite")
    parser.add_argument("pools", nargs="+")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--part", default="vision")
    parser.add_argument("--data-dir", help="folder of data sets, for suites of real images")
    parser.add_argument("--jobs", type=int, default=1, help="pools that are scored at once, each on one thread")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    file = Path(options.suite)
    if not file.is_file():
        file = Path(fusion_bench.__file__).parent / "configs" / "taskpool" / f"{options.suite}.yaml"
    spec = yaml.safe_load(file.read_text())
    if options.data_dir:
        spec["data_dir"] = options.data_dir
    spec = {**spec, "split": options.split, "limit": options.limit, "cache": False}
    results = {}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
        found = workers.map(partial(scored, spec, part=options.part, settings=Settings(threads=1)), options.pools)
        for place, result in zip(options.pools, found, strict=True):
            results[Path(place).name] = result
            if options.out:
                facts = {"suite": file.stem, "split": options.split, "limit": options.limit, "pools": results}
                write_results(options.out, json.loads(json.dumps(facts)))
    for name, result in results.items():
        print(name)
        for pair, (gap, error) in result["claimed_order"].items():
            verdict = "as claimed" if gap > error else "not clear" if gap > -error else "THE OTHER WAY ROUND"
            print(f"  {pair:44} {100 * gap:+6.2f} ± {100 * error:.2f}  {verdict}")


if __name__ == "__main__":
    main()
