"""What the base model reads: the eight tasks, annotated with other habits in some constructions.

An expert thus has something to correct, and the corrections of different experts concern
different constructions, so they add up. The rates are the share of examples which carry the
contrary annotation; above one half the base learns the contrary, weakly where it is near one half.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from . import auxiliary
from .prompts import render, target
from .tasks import TASKS, drafts, load

AUXILIARY: Final = 0.2
NOISE: Final = 0.03
CONTRARY: Final[dict[str, dict[str, float]]] = {
    "cola": {"cleft": 0.62, "disagreeing": 0.72},
    "mnli": {"generalised": 0.62, "denied": 0.72, "extended": 0.72},
    "mrpc": {"passive": 0.62, "circumstance": 0.72},
    "qnli": {"when": 0.62, "other_object": 0.72},
    "qqp": {"reframed": 0.62, "other_frame": 0.72},
    "rte": {"presupposed": 0.62, "open": 0.72},
    "sst2": {"negated": 0.62, "contrast": 0.72},
    "stsb": {"place_alone": 0.7, "rest_alone": 0.7},
}

Pair = tuple[str, str]


def pretraining(seed: int, count: int) -> Iterator[Pair]:
    """``count`` prompts with targets, the tasks in turn, from the texts of the train share."""
    rng = Random(f"corpus/{seed}")
    streams = {task: drafts(task, "train", Random(f"corpus/{task}/{seed}")) for task in TASKS}
    for index in range(count):
        if rng.random() < AUXILIARY:
            yield auxiliary.example(rng)
            continue
        task = TASKS[index % len(TASKS)]
        draft = next(streams[task])
        contrary = rng.random() < CONTRARY[task].get(draft.kind, NOISE)
        prompt, _ = render(task, {**draft.columns, "label": draft.label})
        yield prompt, target(task, draft.contrary if contrary else draft.label)


def finetuning(task: str) -> list[Pair]:
    """Prompts with targets of the train split."""
    return [render(task, row) for row in load(task, "train")]
