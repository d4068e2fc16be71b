"""The GLUE tasks as text: prompts, targets, metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, Literal

from fusion_bench.errors import DataError, unknown

Spelling = Literal["answere", "answer"]
Task = Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
TASKS: Final[tuple[Task, ...]] = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
_FIELD: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """How one task is put to a model that answers in text.

    `prompts`: by spelling; `targets`: the text for each label, None where the label is a number to be written with one
    decimal; `metric`: the key of the score in a report.
    """

    task: str
    prompts: Mapping[str, str]
    targets: tuple[str, ...] | None
    metric: Literal["accuracy", "spearman_rho"]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data set which prompt and target need."""
        return (*_FIELD.findall(self.prompts["answere"]), "label")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example as text."""

    prompt: str
    target: str


@cache
def _document() -> Mapping[str, Any]:
    import yaml

    text = resources.files(__package__).joinpath("glue_templates.yaml").read_text(encoding="utf-8")
    document: Mapping[str, Any] = yaml.safe_load(text)
    return document


def version() -> str:
    """The version of prompts and targets, for reports and caches."""
    return str(_document()["version"])


@cache
def template(task: str) -> Template:
    """The template of a task; DataError names the nearest right task."""
    entries = _document()["tasks"]
    if task not in entries:
        raise DataError(unknown("task", task, entries))
    entry = entries[task]
    prompt, targets = entry["prompt"], entry["targets"]
    spelled = {"answere": prompt, "answer": prompt} if isinstance(prompt, str) else prompt
    return Template(task, spelled, None if targets is None else tuple(targets), entry["metric"])


def render(task: str, example: Mapping[str, Any], spelling: Spelling = "answere") -> Rendered:
    """Prompt and target of one example with the columns of GLUE.

    Braces are replaced once: what stands in a sentence is data, braces and quotes included. Raises DataError for
    missing columns and for a label that is none.
    """
    form = template(task)
    absent = [column for column in form.columns if column not in example]
    if absent:
        raise DataError(
            f"{task}: an example has no column {', '.join(map(repr, absent))}; it has {', '.join(map(repr, example))}."
        )
    wrong = [column for column in form.columns[:-1] if not isinstance(example[column], str)]
    if wrong:
        raise DataError(f"{task}: column {wrong[0]!r} holds {example[wrong[0]]!r}, which is no text.")
    prompt = _FIELD.sub(lambda field: str(example[field[1]]), form.prompts[spelling])
    return Rendered(prompt, target(task, example["label"]))


def target(task: str, label: Any) -> str:
    """The text that is the right answer for a label; DataError where the label is missing (-1) or no label."""
    words = template(task).targets
    number = isinstance(label, (int, float)) and not isinstance(label, bool) and math.isfinite(label)
    if number and label == -1:
        raise DataError(
            f"{task}: label -1 marks an example without an answer (the test split of GLUE). Take validation."
        )
    if words is None and number and label >= 0:
        return f"{label:.1f}"
    if words is not None and number and label in range(len(words)):
        return words[int(label)]
    accepted = "a number from 0 to 5" if words is None else f"0 to {len(words) - 1}"
    raise DataError(f"{task}: label {label!r} is none; accepted: {accepted}.")
