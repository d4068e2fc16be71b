"""The recipe from nothing to a folder pool: ``python -m fusion_bench.zoo.text.build OUT --seed 0``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from .tasks import TASKS
from .training import Log


def build(out: Path, seed: int = 0, *, full: bool = False, log: Log = print) -> None:
    """Write ``base/`` and one folder for each task under ``out``, all in half precision.

    full  experts are whole fine-tuned models instead of adapters

    An interrupted build goes on: folders that are there are kept, and none is there before it is
    whole. One free core needs about seven minutes for adapters.
    """
    import torch

    from . import base_model, expert, model, tokenizer

    torch.set_num_threads(1)
    start = time.perf_counter()
    words = tokenizer.build()
    if not (out / "base").exists():
        model.save(base_model.pretrain(words, seed, log), words, out / "base", torch.float16)
    # Experts start from the weights that ship, so that half precision loses nothing twice.
    base = model.load(out / "base")
    for done, task in enumerate(TASKS, start=1):
        if not (out / task).exists():
            tuned = expert.finetune(base, words, task, seed, full=full, log=log)
            if full:
                model.save(tuned, words, out / task, torch.float16)
            else:
                expert.save_adapter(tuned, out / task, torch.float16)
        log(f"{task} is there, {done} of {len(TASKS)} experts, {time.perf_counter() - start:.0f} s since the start")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(prog="fusion_bench.zoo.text.build", description=build.__doc__)
    parser.add_argument("out", type=Path, help="folder to write the pool to")
    parser.add_argument("--seed", type=int, default=0, help="seed of initialisation, corpus and order")
    parser.add_argument("--full", action="store_true", help="fine-tune all weights instead of adapters")
    options = parser.parse_args(arguments)
    build(options.out, options.seed, full=options.full, log=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
