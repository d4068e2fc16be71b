"""Time and peak memory of the diagonal Fisher information of a model, beside plain forwards and backwards.

usage: python benchmarks/speed/model_statistics.py MODEL [--examples 64] [--tokens 128] [--estimator true] [--out FILE]

MODEL is the folder of an encoder-decoder model. Plain: the log-probability of the right answer of each example alone,
forward and backward, with a gradient for every parameter that is dropped after each. Both run in one process, one after
the other, on the same random examples; memory is the peak of anonymous pages while each runs, less what the process
held before it loaded the model.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import write_results


def anonymous_mb() -> float:
    """Anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


class Meter:
    """Seconds of wall and CPU time, and the most anonymous memory, sampled every 5 ms."""

    def __init__(self) -> None:
        self.seconds = self.cpu = self.peak = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.005):
                self.peak = max(self.peak, anonymous_mb())

        thread = threading.Thread(target=sample)
        thread.start()
        started, worked = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds, self.cpu = time.perf_counter() - started, time.process_time() - worked
            done.set()
            thread.join()


def questions(examples: int, tokens: int, vocabulary: int) -> Any:
    """Random inputs of one length with one of two answers."""
    import torch

    from fusion_bench.fitting import Batch, TaskData

    class Questions(TaskData):
        name, digest, facts, classes = "random", "", {}, (209, 465)

        def __len__(self) -> int:
            return examples

        def collate(self, places: Sequence[int]) -> Batch:
            rows = []
            for place in places:
                generator = torch.Generator().manual_seed(place)
                rows.append(torch.randint(3, vocabulary, (tokens,), generator=generator))
            inputs = torch.stack(rows)
            start = torch.zeros(len(places), 1, dtype=torch.long)
            labels = torch.tensor([place % 2 for place in places])
            mask = torch.ones_like(inputs).bool()
            return Batch({"input_ids": inputs, "decoder_input_ids": start}, tuple(places), labels, {"encoder": mask})

        def forward(self, module: Any, batch: Batch) -> None:
            module(**batch.inputs)

        def logits(self, module: Any, batch: Batch) -> torch.Tensor:
            found: torch.Tensor = module(**batch.inputs).logits[:, 0]
            return found

        def log_probs(self, module: Any, batch: Batch) -> torch.Tensor:
            return self.logits(module, batch)[:, list(self.classes)].log_softmax(-1)

        def gold_log_prob(self, module: Any, batch: Batch) -> torch.Tensor:
            assert batch.labels is not None
            return self.log_probs(module, batch).gather(1, batch.labels[:, None])[:, 0]

    return Questions()


def main() -> None:
    import torch

    from fusion_bench.checkpoint.open import open_checkpoint
    from fusion_bench.family import family_of
    from fusion_bench.fitting import Fitting
    from fusion_bench.progress import Progress
    from fusion_bench.statistics import diagonal_fisher

    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--estimator", default="true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "model_statistics.json")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.model)
    family = family_of(checkpoint.config)
    data = questions(arguments.examples, arguments.tokens, checkpoint.config["vocab_size"])

    def load(each: Any) -> Any:
        return family.load(each, torch.float32, torch.device("cpu"))

    # Libraries are read and warmed up before anything is measured.
    small = torch.nn.Linear(2, 2)
    small(torch.ones(1, 2)).sum().backward()
    module = load(checkpoint)
    weights = sum(p.numel() * p.element_size() for p in module.parameters()) / 1e6
    del module
    before = anonymous_mb()

    plain = Meter()
    with plain.running():
        module = load(checkpoint).requires_grad_(True)
        for place in range(arguments.examples):
            data.gold_log_prob(module, data.collate([place]))[0].backward()
            module.zero_grad(set_to_none=True)
    del module
    fisher = Meter()
    fitting = Fitting({"m": data}, load, Progress(enabled=False), token_stream=family.token_stream)
    with fisher.running():
        record = diagonal_fisher("m", checkpoint, fitting, arguments.estimator, arguments.examples).record
    rows = {
        name: {"wall_s": round(meter.seconds, 2), "cpu_s": round(meter.cpu, 2), "peak_mb": round(meter.peak - before)}
        for name, meter in (("plain", plain), ("fisher", fisher))
    }
    ratio = round(fisher.cpu / plain.cpu, 3)
    print(f"weights {weights:.0f} MB; {rows}; ratio of CPU times {ratio}")
    facts = {"examples": arguments.examples, "tokens": arguments.tokens, "estimator": arguments.estimator}
    flops = {"weights_mb": round(weights), "flops": record["flops"], "torch_threads": torch.get_num_threads()}
    write_results(arguments.out, {**facts, **flops, "cpu_ratio": ratio, **rows})


if __name__ == "__main__":
    main()
