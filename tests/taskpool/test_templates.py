"""Prompts and targets, character by character."""

from __future__ import annotations

from typing import Any

import pytest

from fusion_bench.errors import DataError
from fusion_bench.taskpool import templates
from fusion_bench.taskpool.templates import Rendered, render

ANSWERE = {
    "cola": """Indicate if the following sentence is grammatically correct or not: "{sentence}". Answere 'acceptable' or 'unacceptable'.""",  # noqa: E501
    "mnli": """Does the premise: '{premise}' logically imply, contradict, or is neutral to the hypothesis: '{hypothesis}'? Answere with 'entailment', 'contradiction', or 'neutral'.""",  # noqa: E501
    "mrpc": """Are the following sentences '{sentence1}' and '{sentence2}' conveying the same meaning? Answere with 'yes' or 'no'.""",  # noqa: E501
    "qnli": """Given the context: '{sentence}', does the question '{question}' have an answer based on the information provided? Answer with 'yes' or 'no'.""",  # noqa: E501
    "qqp": """Do the questions '{question1}' and '{question2}' have the same intent? Answere with 'yes' or 'no'.""",
    "rte": """Does the text: '{sentence1}' entail that '{sentence2}' is true? Provide 'yes' or 'no'.""",
    "sst2": """Given the sentence '{sentence}', determine the sentiment. Is it positive or negative?""",
    "stsb": """Consider the sentences '{sentence1}' and '{sentence2}'. On a scale from 1 (completely different) to 5 (completely similar), rate the similarity.""",  # noqa: E501
}
TARGETS = {
    "cola": ("unacceptable", "acceptable"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "mrpc": ("no", "yes"),
    "qnli": ("yes", "no"),
    "qqp": ("no", "yes"),
    "rte": ("yes", "no"),
    "sst2": ("negative", "positive"),
    "stsb": None,
}


@pytest.mark.parametrize("task", templates.TASKS)
def test_published_strings(task: str) -> None:
    form = templates.template(task)
    assert form.prompts["answere"] == ANSWERE[task]
    changed = task in ("cola", "mnli", "mrpc", "qqp")
    assert form.prompts["answer"] == (ANSWERE[task].replace("Answere", "Answer") if changed else ANSWERE[task])
    assert ("Answere" in form.prompts["answere"]) is changed
    assert form.targets == TARGETS[task]
    assert form.metric == ("spearman_rho" if task == "stsb" else "accuracy")


@pytest.mark.parametrize("task", templates.TASKS)
@pytest.mark.parametrize("spelling", ["answere", "answer"])
def test_rendered(task: str, spelling: Any) -> None:
    example: dict[str, Any] = {name: f"<{name}>" for name in templates.template(task).columns} | {"label": 1, "idx": 3}
    prompt = templates.template(task).prompts[spelling]
    for name in example:
        prompt = prompt.replace("{" + name + "}", f"<{name}>")
    words = TARGETS[task]
    assert render(task, example, spelling) == Rendered(prompt, "1.0" if words is None else words[1])


def test_sentences_are_data() -> None:
    text = 'it\'s {sentence2} {0} {{x}} "y" \\1 %s'
    rendered = render("rte", {"sentence1": text, "sentence2": "{sentence1}", "label": 0})
    assert rendered.prompt == f"Does the text: '{text}' entail that '{{sentence1}}' is true? Provide 'yes' or 'no'."


@pytest.mark.parametrize(
    ("label", "text"), [(0.0, "0.0"), (5, "5.0"), (3.799999952316284, "3.8"), (2.25, "2.2"), (4.95, "5.0")]
)
def test_similarity_is_written_with_one_decimal(label: float, text: str) -> None:
    assert templates.target("stsb", label) == text


@pytest.mark.parametrize("task", templates.TASKS)
@pytest.mark.parametrize("label", [-1, 7 - 10.0, None, "yes", float("nan"), True, -0.5])
def test_labels_that_are_none_are_errors(task: str, label: Any) -> None:
    with pytest.raises(DataError, match=task):
        templates.target(task, label)


def test_the_label_of_test_splits_is_named() -> None:
    for task in templates.TASKS:
        with pytest.raises(DataError, match="label -1 marks an example without an answer"):
            templates.target(task, -1.0 if task == "stsb" else -1)
    with pytest.raises(DataError, match="accepted: 0 to 2"):
        templates.target("mnli", 3)


def test_missing_columns_are_named() -> None:
    with pytest.raises(DataError, match="no column 'premise', 'label'; it has 'hypothesis'"):
        render("mnli", {"hypothesis": "x"})
    with pytest.raises(DataError, match="'sentence' holds None"):
        render("sst2", {"sentence": None, "label": 0})
    with pytest.raises(DataError, match="Did you mean 'cola'"):
        render("colaa", {})
