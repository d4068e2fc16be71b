"""The examples of the suite as text, in the spelling that published scores were made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fusion_bench.taskpool import templates

__all__ = ["phrases", "render", "target"]

target = templates.target


def render(task: str, example: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and target of one example."""
    text = templates.render(task, example, "answere")
    return text.prompt, text.target


def phrases() -> Iterator[str]:
    """Everything that the templates themselves can say: prompts in each spelling, the words of the targets."""
    for task in templates.TASKS:
        template = templates.template(task)
        yield from template.prompts.values()
        yield from template.targets or ()
