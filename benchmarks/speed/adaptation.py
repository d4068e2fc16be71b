"""A step of layer-wise AdaMerging against what it cannot do without: the passes of the model, one read of the models.

usage: python benchmarks/speed/adaptation.py POOL [--rows 4] [--tokens 64] [--rounds 3] [--budget 800MB] [--out FILE]

POOL holds base/ and full encoder-decoder models. Sides alternate in one process: forward and backward passes of one
batch a model over one live model; one read of all task vectors; a step, which does both and merges the model anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import median, write_results


def anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


class Peak:
    """The most anonymous memory of this process, sampled every 20 ms until it is stopped."""

    def __init__(self) -> None:
        self.value, self._on = 0.0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._on:
            self.value = max(self.value, anonymous_mb())
            time.sleep(0.02)

    def stop(self) -> float:
        self._on = False
        self._thread.join()
        return self.value


def random_data(name: str, rows: int, tokens: int, vocabulary: int) -> Any:
    import torch

    from fusion_bench.fitting import Batch, TaskData

    class RandomText(TaskData):
        """Random tokens; logits are those of the first token of the answer."""

        def __init__(self) -> None:
            self.name, self.facts, self.digest = name, {}, ""
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            self.ids = torch.randint(3, vocabulary, (64, tokens), generator=generator)

        def __len__(self) -> int:
            return len(self.ids)

        def collate(self, places: Sequence[int]) -> Batch:
            return Batch({"input_ids": self.ids[list(places)]}, tuple(places))

        def logits(self, module: Any, batch: Batch) -> Any:
            start = torch.zeros(len(batch), 1, dtype=torch.long)
            return module(input_ids=batch.inputs["input_ids"], decoder_input_ids=start, use_cache=False).logits[:, 0]

        def forward(self, module: Any, batch: Batch) -> None:
            self.logits(module, batch)

        def log_probs(self, module: Any, batch: Batch) -> Any:
            return self.logits(module, batch).log_softmax(-1)

        def gold_log_prob(self, module: Any, batch: Batch) -> Any:
            raise NotImplementedError

    return RandomText()


def main() -> None:
    from dataclasses import replace

    import torch

    from fusion_bench.api import inputs_of
    from fusion_bench.cli.job import size_bytes
    from fusion_bench.fit import pool_fitting
    from fusion_bench.method import method_class
    from fusion_bench.method.adaptation import learner_of
    from fusion_bench.method.coefficients import CoefficientMerge
    from fusion_bench.method.engine import MergedCheckpoint
    from fusion_bench.modelpool import open_modelpool
    from fusion_bench.ops.products import entropy
    from fusion_bench.settings import Settings

    parser = argparse.ArgumentParser()
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", default="800MB")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adaptation.json")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    pool = open_modelpool({"type": "folder", "path": str(arguments.pool)})
    merging = CoefficientMerge(others=(0.3,) * len(pool.models))
    inputs = replace(
        inputs_of(merging, pool, threads=cores, budget=size_bytes(arguments.budget, "budget")), dtype="F32"
    )
    vocabulary = int(pool.reference.config["vocab_size"])
    tasks = {name: random_data(name, arguments.rows, arguments.tokens, vocabulary) for name in pool.models}
    fitting = pool_fitting(pool, tasks, Settings(threads=cores), cache=False)
    peak = Peak()
    learner = learner_of(merging, inputs, fitting.load, "none", 1e-3, "none", False)
    scan = MergedCheckpoint(merging, inputs).scan

    def passes() -> None:
        for data in tasks.values():
            loss: Any = entropy(data.logits(learner.module, data.batch_at(0, arguments.rows, 0))).mean()
            loss.backward()

    def read() -> None:
        def visit(slot: Any) -> None:
            for _ in slot.deltas:
                pass

        scan(visit, "reading")

    def clear() -> None:
        for parameter in learner.module.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    def timed(work: Callable[[], None]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def step() -> None:
        passes()
        learner.step()

    torch.set_num_threads(cores)
    sides: dict[str, list[float]] = {"passes": [], "read": [], "step": []}
    passes(), learner.step(), read()  # the page cache, the gradients' memory
    for _ in range(arguments.rounds):
        clear()
        sides["passes"].append(timed(passes))
        clear()
        sides["read"].append(timed(read))
        sides["step"].append(timed(step))
    result = {
        "method": method_class("layer_wise_adamerging").key(),
        "models": len(pool.models),
        "parameters": sum(parameter.numel() for parameter in learner.module.parameters()),
        "rows": arguments.rows,
        "tokens": arguments.tokens,
        "memory_budget": arguments.budget,
        "threads": torch.get_num_threads(),
        **{f"{name}_s": median(values) for name, values in sides.items()},
        "step_over_passes_and_read": round(
            median([s / (p + r) for s, p, r in zip(sides["step"], sides["passes"], sides["read"], strict=True)]), 2
        ),
        "peak_anonymous_mb": round(peak.stop()),
    }
    for key, value in result.items():
        print(f"{key:28} {value}")
    write_results(arguments.out, result)


if __name__ == "__main__":
    main()
