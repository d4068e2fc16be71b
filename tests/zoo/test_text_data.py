"""The generated examples: frozen bytes, disjoint splits, columns of GLUE."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter

import pytest

from fusion_bench.taskpool.templates import template
from fusion_bench.zoo import text
from fusion_bench.zoo.text.lexicon import POSITIVE
from fusion_bench.zoo.text.prompts import render

COLUMNS = {
    "cola": {"sentence"},
    "mnli": {"premise", "hypothesis"},
    "mrpc": {"sentence1", "sentence2"},
    "qnli": {"question", "sentence"},
    "qqp": {"question1", "question2"},
    "rte": {"sentence1", "sentence2"},
    "sst2": {"sentence"},
    "stsb": {"sentence1", "sentence2"},
}
# Of the test split, which scores are reported on. A change here is a new VERSION of the suite.
DIGESTS = {
    "cola": "ebd92bba43b7e930",
    "mnli": "b613f0c2237d3e03",
    "mrpc": "e948d3da31a8da23",
    "qnli": "392482d64641314f",
    "qqp": "26340e80d5376d05",
    "rte": "153b5ef4d4fb964e",
    "sst2": "fdfa87aa465f0288",
    "stsb": "9a3efdcfdaec85eb",
}


def _texts(task: str, split: str) -> set[tuple[str, ...]]:
    return {tuple(sorted(str(row[name]) for name in COLUMNS[task])) for row in text.load(task, split)}


def test_the_tasks_are_those_of_glue_without_wnli() -> None:
    assert set(text.TASKS) == set(COLUMNS)


@pytest.mark.parametrize("task", text.TASKS)
def test_columns_labels_and_index(task: str) -> None:
    rows = text.load(task, "test")
    assert len(rows) == text.SIZES["test"] >= 600
    assert [row["idx"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert set(row) == COLUMNS[task] | {"label", "idx"}
        if task == "stsb":
            assert isinstance(row["label"], float)
            assert 0.0 <= row["label"] <= 5.0
            assert round(row["label"], 1) == row["label"]
        else:
            assert row["label"] in range(len(template(task).targets))


@pytest.mark.parametrize("task", [task for task in text.TASKS if task != "stsb"])
def test_no_label_dominates(task: str) -> None:
    counts = Counter(row["label"] for row in text.load(task, "test"))
    assert max(counts.values()) / counts.total() < (0.45 if task == "mnli" else 0.6)


@pytest.mark.parametrize("task", text.TASKS)
def test_splits_share_no_text_and_repeat_none(task: str) -> None:
    splits = [_texts(task, split) for split in text.SIZES]
    assert [len(texts) for texts in splits] == list(text.SIZES.values())
    assert len(set.union(*splits)) == sum(text.SIZES.values())


@pytest.mark.parametrize("task", text.TASKS)
def test_test_split_is_frozen(task: str) -> None:
    data = json.dumps(text.load(task, "test"), sort_keys=True).encode()
    assert hashlib.sha256(data).hexdigest()[:16] == DIGESTS[task]


def test_another_seed_gives_other_examples_of_the_same_share() -> None:
    first, second = text.load("rte", "test"), text.load("rte", "test", seed=1)
    assert first != second
    train = _texts("rte", "train")
    assert not train & {tuple(sorted((row["sentence1"], row["sentence2"]))) for row in second}


def test_unknown_names_are_refused_with_what_is_accepted() -> None:
    with pytest.raises(ValueError, match="unknown task 'wnli'; accepted: cola"):
        text.load("wnli", "test")
    with pytest.raises(ValueError, match="unknown split 'dev'; accepted: train, validation, test"):
        text.load("cola", "dev")


def test_a_pair_is_annotated_from_its_content() -> None:
    """The labels follow rules that a reader can check by hand."""
    for row in text.load("mnli", "test"):
        if row["hypothesis"].startswith("nobody"):
            assert row["label"] == 2
        if row["hypothesis"].startswith("someone"):
            assert row["label"] == 0
    for row in text.load("sst2", "test"):
        if " but " in row["sentence"]:
            prompt, target = render("sst2", row)
            last = row["sentence"].split()[-1]
            assert last in prompt
            assert (target == "positive") == (last in POSITIVE)


def test_neither_importing_nor_loading_needs_torch() -> None:
    code = (
        "import sys; from fusion_bench.zoo import text, MINI_T5; from fusion_bench.zoo.text import build; "
        "[text.load(task, 'test') for task in text.TASKS]; "
        "print([m for m in ('torch', 'transformers', 'peft', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
