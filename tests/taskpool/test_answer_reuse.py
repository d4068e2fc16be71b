"""What one pool keeps from one evaluation to the next, in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.family.seq2seq_lm import Seq2SeqLM
from fusion_bench.settings import Settings
from fusion_bench.taskpool import templates
from fusion_bench.taskpool.text_generation import GlueTextGeneration

ONE = Settings(device="cpu", threads=1)
Make = Callable[..., MemoryCheckpoint]
Strip = Callable[[dict[str, Any]], dict[str, Any]]
Open = Callable[..., GlueTextGeneration]


def test_several_checkpoints_in_one_pool(
    without_times: Strip, pool: Open, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    inner = Seq2SeqLM.load

    def counted(self: Seq2SeqLM, *args: Any, **kwargs: Any) -> torch.nn.Module:
        loads.append("load")
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Seq2SeqLM, "load", counted)
    made = pool(cache=False)
    checkpoints = [make_checkpoint(seed=0), make_checkpoint(seed=1), make_checkpoint(seed=0)]
    reports = [without_times(made.evaluate(c, settings=ONE)) for c in checkpoints]
    assert reports[0] == reports[2]
    assert reports == [without_times(pool(cache=False).evaluate(c, settings=ONE)) for c in checkpoints]
    assert len(loads) == 1 + 3  # once for the three in one pool
    # Another shape, other facts in the config, another precision: a new module.
    made.evaluate(make_checkpoint(d_ff=20), settings=ONE)
    made.evaluate(make_checkpoint(d_ff=20, layer_norm_epsilon=0.1), settings=ONE)
    made.evaluate(make_checkpoint(d_ff=20, layer_norm_epsilon=0.1), settings=Settings(threads=1, dtype="bfloat16"))
    assert len(loads) == 1 + 3 + 3


def test_answers_are_reused(
    without_times: Strip, pool: Open, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pool(limit=3).evaluate(make_checkpoint(), settings=ONE)
    again = pool().evaluate(make_checkpoint(), settings=ONE)
    assert {task: first[task]["cached"] for task in templates.TASKS} == dict.fromkeys(templates.TASKS, 0)
    assert {task: again[task]["cached"] for task in templates.TASKS} == dict.fromkeys(templates.TASKS, 3)

    def refuse(*args: Any) -> None:
        raise AssertionError("everything is known")

    monkeypatch.setattr(Seq2SeqLM, "decode", refuse)
    third = pool().evaluate(make_checkpoint(), settings=ONE)
    assert without_times(third) == without_times(again)
    assert third["mnli"]["cached"] == 7


@pytest.mark.parametrize(
    ("spec", "config", "settings"),
    [
        ({}, {"layer_norm_epsilon": 0.5}, ONE),
        ({"max_length": 4}, {}, ONE),
        ({"max_input_length": 9}, {}, ONE),
        ({}, {}, Settings(device="cpu", threads=1, dtype="bfloat16")),
    ],
)
def test_whatever_an_answer_depends_on_is_part_of_the_key(
    without_times: Strip,
    pool: Open,
    make_checkpoint: Make,
    spec: Mapping[str, Any],
    config: Mapping[str, Any],
    settings: Settings,
) -> None:
    pool(select=["cola"]).evaluate(make_checkpoint(), settings=ONE)
    report = pool(select=["cola"], **spec).evaluate(make_checkpoint(**config), settings=settings)
    assert report["cola"]["cached"] == 0
    fresh = pool(select=["cola"], cache=False, **spec).evaluate(make_checkpoint(**config), settings=settings)
    assert without_times(report) == without_times(fresh)


def test_one_changed_weight_is_another_model(pool: Open, make_checkpoint: Make) -> None:
    checkpoint = make_checkpoint()
    pool(select=["cola"]).evaluate(checkpoint, settings=ONE)
    tensors = dict(checkpoint)
    tensors["lm_head.weight"][3, 3] += 1e-3
    report = pool(select=["cola"]).evaluate(MemoryCheckpoint(tensors, checkpoint.config), settings=ONE)
    assert report["cola"]["cached"] == 0
    renamed = MemoryCheckpoint(dict(checkpoint), {**checkpoint.config, "_name_or_path": "elsewhere"})
    assert pool(select=["cola"]).evaluate(renamed, settings=ONE)["cola"]["cached"] == 7


def test_an_interrupted_evaluation_continues(
    without_times: Strip, pool: Open, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = Settings(device="cpu", threads=1, batch_size=2)
    whole = without_times(pool(cache=False).evaluate(make_checkpoint(), settings=small))
    inner, calls = Seq2SeqLM.decode, []

    def interrupted(self: Seq2SeqLM, *args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return inner(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Seq2SeqLM, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool().evaluate(make_checkpoint(), settings=small)
    # cola: four batches, seven answers; mnli: two batches of two.
    [file] = (tmp_path / "cache" / "answers").iterdir()
    file.write_bytes(file.read_bytes()[:-9])  # as if the last line had been cut off, too
    report = pool().evaluate(make_checkpoint(), settings=small)
    assert [report[task]["cached"] for task in ("cola", "mnli", "mrpc")] == [7, 3, 0]
    assert without_times(report) == whole


def test_equal_prompts_are_answered_once(
    pool: Open, make_checkpoint: Make, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "twice", "sst2", [{"sentence": text, "label": 0} for text in ["a", "b", "a", "a", "b", "c"]])
    rows: list[int] = []
    inner = Seq2SeqLM.encode

    def counted(self: Seq2SeqLM, module: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows.append(len(ids))
        return inner(self, module, ids, mask)

    monkeypatch.setattr(Seq2SeqLM, "encode", counted)
    made = pool(select=["sst2"], data_dir=str(tmp_path / "twice"))
    assert made.evaluate(make_checkpoint(), settings=ONE)["sst2"]["n"] == 6
    assert sum(rows) == 3
    assert made.evaluate(make_checkpoint(), settings=ONE)["sst2"]["cached"] == 6
