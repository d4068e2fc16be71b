"""Runs the recipe of the miniature text-to-text suite for several seeds, writes the test scores as JSON.

    python benchmarks/accuracy/mini_t5_seeds.py [--seeds 0 1 2] [--work FOLDER] [--split test]

Pools already in FOLDER/seed-N are used as they are. Scores are fractions.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from fusion_bench.zoo.text import SIZES, TASKS, VERSION, build, evaluation, model

Scores = dict[str, float]
Deltas = dict[str, dict[str, torch.Tensor]]
LAMBDAS = [step / 10 for step in range(11)]


def deltas(pool: Path) -> Deltas:
    """Each expert minus the base, adapters multiplied out in single precision."""
    from peft import PeftModel

    base = model.load(pool / "base").state_dict()
    found: Deltas = {}
    for task in TASKS:
        expert = PeftModel.from_pretrained(model.load(pool / "base"), pool / task).merge_and_unload().state_dict()
        found[task] = {name: expert[name] - base[name] for name in base if not torch.equal(expert[name], base[name])}
    return found


def ties(parts: Deltas, density: float = 0.2) -> dict[str, torch.Tensor]:
    """TIES-Merging (arXiv:2306.01708) with sum: trim per model, elect signs, add what agrees."""
    names = sorted({name for part in parts.values() for name in part})
    flat = torch.stack([torch.cat([part[name].flatten() for name in names]) for part in parts.values()])
    keep = int(flat.shape[1] * density)
    threshold = flat.abs().topk(keep, dim=1).values[:, -1:]
    flat = flat * (flat.abs() >= threshold)
    merged = (flat * (flat.sign() == flat.sum(0).sign())).sum(0)
    some = next(iter(parts.values()))
    pieces = merged.split([some[name].numel() for name in names])
    return {name: piece.reshape(some[name].shape) for name, piece in zip(names, pieces, strict=True)}


def run(pool: Path, split: str) -> dict[str, Any]:
    """All rows of one pool."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(pool / "base")
    live = model.load(pool / "base")
    start = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    parts = deltas(pool)

    def scored(title: str, delta: dict[str, torch.Tensor], scale: float, split: str = split) -> Scores:
        live.load_state_dict({n: t + scale * delta[n] if n in delta else t for n, t in start.items()})
        scores = evaluation.score(live, words, split)
        row = {**scores, "average": sum(scores.values()) / len(scores)}
        print(f"{pool.name} {title:20}", " ".join(f"{100 * value:5.1f}" for value in row.values()), flush=True)
        return row

    total = {n: sum(part[n] for part in parts.values()) for n in parts["cola"]}
    # The scaling factor is chosen here, so that the reported split has no say in it.
    tuning = {f"{scale:.1f}": scored(f"tuning {scale}", total, scale, "validation")["average"] for scale in LAMBDAS}
    experts = {task: scored(f"expert {task}", parts[task], 1.0) for task in TASKS}
    return {
        "validation_averages": tuning,
        "chosen_scaling_factor": max(tuning, key=tuning.__getitem__),
        "base": scored("base", {}, 0.0),
        "experts": experts,
        "experts_own_average": sum(experts[task][task] for task in TASKS) / len(TASKS),
        "simple_average": scored("simple average", total, 1 / len(TASKS)),
        "task_arithmetic": {f"{scale:.1f}": scored(f"task arithmetic {scale}", total, scale) for scale in LAMBDAS},
        "ties_merging_0.3": scored("ties 0.3", ties(parts), 0.3),
    }


def standard_errors(row: Scores, n: int) -> Scores:
    """One sigma: binomial for accuracies, (1 - rho^2)/sqrt(n - 1) for the rank correlation."""
    return {
        task: (1 - row[task] ** 2) / math.sqrt(n - 1) if task == "stsb" else math.sqrt(row[task] * (1 - row[task]) / n)
        for task in TASKS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="keep the pools here (default: a temporary folder)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        results: dict[str, Any] = {}
        for seed in options.seeds:
            pool = (options.work or Path(temporary)) / f"seed-{seed}"
            build.build(pool, seed, log=lambda line: print(line, flush=True))
            result = run(pool, options.split)
            own = {task: result["experts"][task][task] for task in TASKS}
            n = SIZES[options.split]
            result["standard_errors"] = {
                "base": standard_errors(result["base"], n),
                "own_experts": standard_errors(own, n),
            }
            results[str(seed)] = result
            report = {"suite": VERSION, "split": options.split, "n_per_task": n, "seeds": results}
            options.out.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
