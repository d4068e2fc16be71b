"""Old spellings in, today's out: a table."""

from __future__ import annotations

import pytest

from fusion_bench.cli.argv import split_verb, translate

MAPPING = ["_pretrained_", "cola", "mnli"]
LIST = ["0:_pretrained_", "1:cola"]

TABLE = [
    (["method=dummy"], MAPPING, ["method=dummy"]),
    (["report_save_path=a.json"], MAPPING, ["save_report=a.json"]),
    (["+report_save_path=a.json"], MAPPING, ["save_report=a.json"]),
    (["merged_model_save_path=out"], MAPPING, ["save_model=out"]),
    (["modelpool=Seq2SeqLMPool/flan-t5-base_glue"], MAPPING, ["modelpool=flan-t5-base_glue"]),
    (["modelpool=Seq2SeqLMPool/a,Seq2SeqLMPool/b"], MAPPING, ["modelpool=a,b"]),
    (["modelpool.models.0.path=x"], MAPPING, ["modelpool.models._pretrained_.path=x"]),
    (["modelpool.models.2.path=x/2.path=y"], MAPPING, ["modelpool.models.mnli.path=x/2.path=y"]),
    (["modelpool.models.1=x"], MAPPING, ["modelpool.models.cola=x"]),
    (["modelpool.models.cola.path=x"], MAPPING, ["modelpool.models.cola.path=x"]),
    (["modelpool.models.cola.path=x"], LIST, ["modelpool.models.1.path=x"]),
    (["modelpool.models.1.path=x"], LIST, ["modelpool.models.1.path=x"]),
    (["modelpool.models.0.path=x"], None, ["modelpool.models.0.path=x"]),
    (
        ["modelpool.models._pretrained_.pretrained_model_name_or_path=x"],
        MAPPING,
        ["modelpool.models._pretrained_.path=x"],
    ),
    (["-m", "method=a,b", "save_report=report_save_path=1"], MAPPING, None),
    # What the default choice does not know is set all the same where the choice is swept.
    (["-m", "method=a,b", "method.x=1", "taskpool.y=2"], MAPPING, ["-m", "method=a,b", "++method.x=1", "taskpool.y=2"]),
    (["-m", "method=a", "method.x=1,2"], MAPPING, None),
]


@pytest.mark.parametrize(("given", "members", "expected"), TABLE)
def test_translate(given: list[str], members: list[str] | None, expected: list[str] | None) -> None:
    assert translate(given, lambda pool: members) == (given if expected is None else expected)


@pytest.mark.parametrize("given", [row[0] for row in TABLE])
def test_translating_twice_changes_nothing(given: list[str]) -> None:
    once = translate(given, lambda pool: MAPPING)
    assert translate(once, lambda pool: MAPPING) == once


def test_verbs() -> None:
    assert split_verb(["list", "methods"]) == ("list", ["methods"])
    assert split_verb(["--help"]) == (None, ["--help"])
    assert split_verb(["method=dummy"]) == (None, ["method=dummy"])
    assert split_verb([]) == (None, [])
