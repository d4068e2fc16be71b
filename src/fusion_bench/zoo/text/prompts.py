"""The prompt templates of the paper's Appendix D with the targets they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_TEMPLATES: Final[dict[str, str]] = {
    "cola": "Indicate if the following sentence is grammatically correct or not: \"{sentence}\". "
    "Answere 'acceptable' or 'unacceptable'.",
    "mnli": "Does the premise: '{premise}' logically imply, contradict, or is neutral to the hypothesis: "
    "'{hypothesis}'? Answere with 'entailment', 'contradiction', or 'neutral'.",
    "mrpc": "Are the following sentences '{sentence1}' and '{sentence2}' conveying the same meaning? "
    "Answere with 'yes' or 'no'.",
    "qnli": "Given the context: '{sentence}', does the question '{question}' have an answer based on the "
    "information provided? Answer with 'yes' or 'no'.",
    "qqp": "Do the questions '{question1}' and '{question2}' have the same intent? Answere with 'yes' or 'no'.",
    "rte": "Does the text: '{sentence1}' entail that '{sentence2}' is true? Provide 'yes' or 'no'.",
    "sst2": "Given the sentence '{sentence}', determine the sentiment. Is it positive or negative?",
    "stsb": "Consider the sentences '{sentence1}' and '{sentence2}'. On a scale from 1 (completely different) "
    "to 5 (completely similar), rate the similarity.",
}
TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "cola": ("unacceptable", "acceptable"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "mrpc": ("no", "yes"),
    "qnli": ("yes", "no"),
    "qqp": ("no", "yes"),
    "rte": ("yes", "no"),
    "sst2": ("negative", "positive"),
}

# Wordings beyond the templates above which the tokenizer must know: the paper prints "Answer".
PHRASES: Final[tuple[str, ...]] = (*_TEMPLATES.values(), "Answer")


def render(task: str, example: Mapping[str, Any]) -> tuple[str, str]:
    """Prompt and target of one example, in the spelling ``answere``."""
    return _TEMPLATES[task].format_map(example), target(task, example["label"])


def target(task: str, label: float) -> str:
    """The text which the model is to produce for ``label``."""
    if task == "stsb":
        return f"{label:.1f}"
    return TARGETS[task][int(label)]
