"""Makes the miniature text-to-text pool for several seeds and scores fusions of it, through the product itself.

usage: python benchmarks/accuracy/mini_t5_seeds.py [--seeds 0 1 2] [--work FOLDER] [--out FILE]

Pools already in FOLDER/seed-N are used as they are. The scaling factor is chosen on the validation split; everything
else is scored on the reported split. Scores are fractions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from fusion_bench import SimpleAverage, TaskArithmetic, TiesMerging, fuse, open_modelpool, open_taskpool
from fusion_bench.settings import Settings
from fusion_bench.zoo.text import SIZES, TASKS, VERSION, build

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import write_results

LAMBDAS = [step / 10 for step in range(11)]
TASKPOOL = {"type": "glue_text_generation", "data": "mini_t5", "cache": False}


def scored(folder: Path) -> dict[str, Any]:
    """All rows of one pool."""
    pool = open_modelpool({"type": "folder", "path": str(folder)})
    splits = {split: open_taskpool({**TASKPOOL, "split": split}) for split in ("validation", "test")}
    errors: dict[str, dict[str, float]] = {}

    def row(title: str, checkpoint: Any, split: str = "test") -> dict[str, float]:
        found = splits[split].evaluate(checkpoint, settings=Settings(), tokenizers=[folder / "base"])
        scores = {task: found[task].get("accuracy", found[task].get("spearman_rho")) for task in TASKS}
        scores["average"] = found["average"]
        errors[title] = {task: found[task]["stderr"] for task in TASKS}
        print(f"{folder.name} {split:10} {title:22}", *(f"{100 * value:5.1f}" for value in scores.values()), flush=True)
        return scores

    def arithmetic(scale: float, split: str = "test") -> dict[str, float]:
        return row(f"task arithmetic {scale}", fuse(TaskArithmetic(scaling_factor=scale), pool), split)

    tuning = {f"{scale:.1f}": arithmetic(scale, "validation")["average"] for scale in LAMBDAS}
    experts = {task: row(f"expert {task}", pool.models[task]) for task in TASKS}
    return {
        "validation_averages": tuning,
        "chosen_scaling_factor": max(tuning, key=tuning.__getitem__),
        "base": row("base", pool.base),
        "experts": experts,
        "experts_own_average": sum(experts[task][task] for task in TASKS) / len(TASKS),
        "simple_average": row("simple average", fuse(SimpleAverage(), pool)),
        "task_arithmetic": {f"{scale:.1f}": arithmetic(scale) for scale in LAMBDAS},
        "ties_merging_0.3": row("ties 0.3", fuse(TiesMerging(scaling_factor=0.3), pool)),
        "standard_errors": {
            "base": errors["base"],
            "own_experts": {task: errors[f"expert {task}"][task] for task in TASKS},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="keep the pools here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results: dict[str, Any] = {}
        for seed in options.seeds:
            pool = (options.work or Path(temporary)) / f"seed-{seed}"
            build.build(pool, seed, log=lambda line: print(line, flush=True))
            results[str(seed)] = scored(pool)
            facts = {"suite": VERSION, "split": "test", "n_per_task": SIZES["test"], "seeds": results}
            write_results(options.out, json.loads(json.dumps(facts)))


if __name__ == "__main__":
    main()
