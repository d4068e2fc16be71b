"""The recipe from nothing to a folder pool: ``python -m fusion_bench.zoo.vision.build OUT --seed 0``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .suite import embedded, real_data
from .training import Log

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel


def build(out: Path, seed: int = 0, *, data: Path | None = None, log: Log = print) -> None:
    """Write ``base/`` and one folder for each task under ``out``, all in half precision.

    data  a folder with mnist, usps, fashion_mnist, cifar10_jpeg: experts for these instead of the embedded tasks

    An interrupted build goes on: folders that are there are kept, and none is there before it is
    whole. One free core needs about eight minutes.
    """
    import torch

    from . import base_model, expert, model, tokenizer
    from .head import answers, head

    torch.set_num_threads(1)
    start = time.perf_counter()
    suite = embedded() if data is None else real_data(data)
    words = tokenizer.build(suite.captions)

    def told(clip: CLIPModel, task: str) -> torch.Tensor:
        return head(clip, words, suite.classes(task), suite.templates(task))

    if not (out / "base").exists():
        made = base_model.pretrain(words, suite.streams(seed, base_model.BATCH), suite.captions, seed, log)
        model.save(made, words, out / "base")
        kept = model.load(out / "base")
        for task in suite.tasks:
            images = suite.load(task, "validation")
            before = answers(made, made.vision_model, told(made, task), images)
            after = answers(kept, kept.vision_model, told(kept, task), images)
            log(_rounding(f"base on {task}", before, after))
    # Experts start from the weights that ship, so that half precision loses nothing twice.
    base = model.load(out / "base")
    for done, task in enumerate(suite.tasks, start=1):
        if not (out / task).exists():
            classes = told(base, task)
            tower = expert.finetune(base, classes, suite.load(task, "train"), task, seed, log)
            model.save_tower(tower, out / task)
            images = suite.load(task, "validation")
            shipped = answers(base, model.load_tower(out / task), classes, images)
            log(_rounding(task, answers(base, tower, classes, images), shipped))
        spent = time.perf_counter() - start
        log(f"{task} is there, {done} of {len(suite.tasks)} experts, {spent:.0f} s since the start")


def _rounding(title: str, before: torch.Tensor, after: torch.Tensor) -> str:
    changed = int((before != after).sum())
    return f"{title}: half precision changes {changed} of {len(before)} answers on validation"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(prog="fusion_bench.zoo.vision.build", description=build.__doc__)
    parser.add_argument("out", type=Path, help="folder to write the pool to")
    parser.add_argument("--seed", type=int, default=0, help="seed of initialisation, corpus and order")
    parser.add_argument("--data", type=Path, help="folder of real image sets, for a pool of experts on these")
    options = parser.parse_args(arguments)
    build(options.out, options.seed, data=options.data, log=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
