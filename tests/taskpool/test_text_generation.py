"""Evaluations of a tiny model from data files to report."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import CheckpointError, ConfigError, DataError
from fusion_bench.family.seq2seq_lm import Seq2SeqLM
from fusion_bench.settings import Settings
from fusion_bench.taskpool import templates
from fusion_bench.taskpool.generation import Generator
from fusion_bench.taskpool.text_generation import GlueTextGeneration

ONE = Settings(device="cpu", threads=1)
Make = Callable[..., MemoryCheckpoint]
Strip = Callable[[dict[str, Any]], dict[str, Any]]


Open = Callable[..., GlueTextGeneration]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str]], None]:
    """Replaces what models answer by a function of the prompt."""

    def replace(answer: Callable[[str], str]) -> None:
        def given(
            self: Generator, prompts: Sequence[str], kept: object, advance: Callable[[float], None]
        ) -> tuple[list[str], int]:
            return [answer(prompt) for prompt in prompts], 0

        monkeypatch.setattr(Generator, "answer", given)

    return replace


def test_outer_shape_of_the_report(
    pool: Open, make_checkpoint: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = pool()
    report = made.evaluate(make_checkpoint(), settings=ONE, predictions=tmp_path / "p")
    assert list(report) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "average"]
    common = {"n", "stderr", "invalid", "invalid_rate", "seconds", "cached"}
    for task in report.keys() - {"average", "stsb"}:
        assert report[task].keys() == common | {"accuracy", "majority", "collapsed"}
    assert report["stsb"].keys() == common | {"spearman_rho", "constant"}
    assert [report[task]["n"] for task in made.tasks] == [7, 7, 5, 5, 5, 5, 5, 6]
    assert report["cola"]["majority"] == 4 / 7
    assert capfd.readouterr().err == ""
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert json.loads(json.dumps(made.describe(), allow_nan=False))["data"].keys() == set(made.tasks)
    assert made.describe()["tokenizer"]["sha256"]


def test_predictions_are_written(pool: Open, make_checkpoint: Make, tmp_path: Path) -> None:
    pool(select=["cola", "stsb"]).evaluate(make_checkpoint(), settings=ONE, predictions=tmp_path / "new" / "p")
    assert sorted(file.name for file in (tmp_path / "new" / "p").iterdir()) == ["cola.jsonl", "stsb.jsonl"]
    written = lines(tmp_path / "new" / "p" / "cola.jsonl")
    assert [line["id"] for line in written] == list(range(100, 107))
    assert {tuple(line) for line in written} == {("id", "prompt_digest", "output", "target")}
    assert [line["target"] for line in written] == ["unacceptable", "acceptable", "acceptable"] * 2 + ["unacceptable"]
    assert len({line["prompt_digest"] for line in written}) == 7


def test_predictions_are_those_of_the_plain_path(
    pool: Open, make_checkpoint: Make, tokenizer_folder: Path, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(seed=4)
    pool().evaluate(checkpoint, settings=ONE, predictions=tmp_path)
    module: Any = Seq2SeqLM().load(checkpoint, torch.float32, torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    seen = set()
    for task in templates.TASKS:
        prompts = [text.prompt for text in pool()._examples_of(task).texts]
        batch = tokenizer(prompts, padding="max_length", max_length=512, truncation=True, return_tensors="pt")
        tokens = module.generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, num_beams=1, max_length=10
        )
        expected = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        assert [line["output"] for line in lines(tmp_path / f"{task}.jsonl")] == expected
        seen |= set(expected)
    assert len({len(text) for text in seen}) > 2  # answers of several lengths were compared


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(
    without_times: Strip, pool: Open, make_checkpoint: Make, tmp_path: Path, batch_size: int
) -> None:
    checkpoint = make_checkpoint(seed=4)
    reference = pool(cache=False).evaluate(checkpoint, settings=ONE, predictions=tmp_path / "a")
    settings = Settings(device="cpu", threads=2, batch_size=batch_size)
    other = pool(cache=False).evaluate(checkpoint, settings=settings, predictions=tmp_path / "b")
    assert without_times(other) == without_times(reference)
    for task in templates.TASKS:
        assert lines(tmp_path / "a" / f"{task}.jsonl") == lines(tmp_path / "b" / f"{task}.jsonl")


def test_scores_and_the_average(pool: Open, make_checkpoint: Make, answering: Any) -> None:
    answering(lambda prompt: "3.0" if "similarity" in prompt else "yes" if "'yes'" in prompt else "positive")
    report = pool().evaluate(make_checkpoint(), settings=ONE)
    expected = {"cola": 0, "mnli": 0, "mrpc": 2 / 5, "qnli": 3 / 5, "qqp": 2 / 5, "rte": 3 / 5, "sst2": 2 / 5}
    assert {task: report[task]["accuracy"] for task in expected} == expected
    assert report["stsb"]["constant"] is True
    assert report["average"] == pytest.approx(sum(expected.values()) / 8)
    assert (report["mnli"]["invalid_rate"], report["mrpc"]["invalid"]) == (1.0, 0)
    assert all(report[task]["collapsed"] for task in expected)
    assert "average_of" not in report


def test_unparseable_similarities(pool: Open, make_checkpoint: Make, answering: Any) -> None:
    # Sentences "a 0" to "a 5": the answers rise with the labels, but the last is no number.
    answering(lambda prompt: "five" if "'a 5'" in prompt else prompt.split("'a ")[1][0])
    zero, whole = (
        pool(select=["stsb"], stsb_unparseable=rule).evaluate(make_checkpoint(), settings=ONE)["stsb"]
        for rule in ("zero", "whole")
    )
    # The first and the last answer are both 0: ranks 1.5 3 4 5 6 1.5 against 1 to 6, with squares 17 and 17.5.
    assert zero["spearman_rho"] == pytest.approx(5 / math.sqrt(17 * 17.5), abs=1e-15)
    assert (whole["spearman_rho"], zero["invalid"], whole["invalid"]) == (0.0, 1, 1)


def test_a_tokenizer_that_changes_targets_is_followed(
    pool: Open, make_checkpoint: Make, answering: Any, tmp_path: Path, tokenizer_folder: Path
) -> None:
    text = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    text["normalizer"] = {"type": "Replace", "pattern": {"String": "y"}, "content": "i"}
    for name in tokenizer_folder.iterdir():
        (tmp_path / name.name).write_text(name.read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    answering(lambda prompt: "ies")
    report = pool(select=["rte"], tokenizer=str(tmp_path)).evaluate(make_checkpoint(), settings=ONE)["rte"]
    assert (report["accuracy"], report["invalid"]) == (3 / 5, 0)


def test_a_failing_task_leaves_the_others(pool: Open, make_checkpoint: Make, data_dir: Path) -> None:
    (data_dir / "glue" / "rte" / "validation-00000-of-00001.parquet").write_bytes(b"")
    report = pool(select=["cola", "rte", "stsb"]).evaluate(make_checkpoint(), settings=ONE)
    assert report["rte"]["error"].startswith("DataError: rte:")
    assert report["average_of"] == ["cola", "stsb"]
    assert report["average"] == (report["cola"]["accuracy"] + report["stsb"]["spearman_rho"]) / 2
    alone = pool(select=["rte"]).evaluate(make_checkpoint(), settings=ONE)
    assert (alone["average"], alone["average_of"]) == (None, [])
    json.dumps(report, allow_nan=False)


def test_all_problems_are_found_before_a_model_is_loaded(pool: Open, tmp_path: Path, data_dir: Path) -> None:
    pool().check()
    for task in ("cola", "rte"):
        (data_dir / "glue" / task / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError) as data:
        pool().check()
    assert [line.split(":")[0] for line in str(data.value).splitlines()] == ["cola", "rte"]
    with pytest.raises(ConfigError) as both:
        pool(tokenizer=None).check([tmp_path])
    assert "rte: taskpool.data_dir" in str(both.value)
    assert "taskpool.tokenizer: no tokenizer found" in str(both.value)


def test_candidates_for_the_tokenizer(
    pool: Open, make_checkpoint: Make, tokenizer_folder: Path, tmp_path: Path
) -> None:
    made = pool(tokenizer=None, select=["cola"])
    made.check([tmp_path, tokenizer_folder])
    report = made.evaluate(make_checkpoint(), settings=ONE, tokenizers=[tmp_path, tokenizer_folder])
    assert report["cola"]["n"] == 7
    with pytest.raises(ConfigError, match=r"taskpool\.tokenizer"):
        made.evaluate(make_checkpoint(), settings=ONE)


def test_limit(pool: Open, make_checkpoint: Make, tmp_path: Path) -> None:
    report = pool(select=["cola"], limit=3).evaluate(make_checkpoint(), settings=ONE, predictions=tmp_path)
    assert report["cola"]["n"] == 3
    ids = [line["id"] for line in lines(tmp_path / "cola.jsonl")]
    pool(select=["cola"], limit=3).evaluate(
        make_checkpoint(seed=1), settings=Settings(seed=1, threads=1), predictions=tmp_path
    )
    assert [line["id"] for line in lines(tmp_path / "cola.jsonl")] == ids


def test_only_some_tasks(pool: Open, make_checkpoint: Make) -> None:
    made = pool()
    report = made.evaluate(make_checkpoint(), settings=ONE, only=["stsb", "cola"])
    assert list(report) == ["cola", "stsb", "average"]
    with pytest.raises(ConfigError, match="Did you mean 'cola'"):
        made.evaluate(make_checkpoint(), settings=ONE, only=["colla"])


def test_spelling_reaches_the_prompts(pool: Open, make_checkpoint: Make, tmp_path: Path) -> None:
    digests = {}
    for spelling in ("answere", "answer"):
        made = pool(prompt_spelling=spelling)
        made.evaluate(make_checkpoint(), settings=ONE, predictions=tmp_path)
        digests[spelling] = {t: [line["prompt_digest"] for line in lines(tmp_path / f"{t}.jsonl")] for t in made.tasks}
        assert made.describe()["prompt_spelling"] == spelling
    changed = {task for task in templates.TASKS if digests["answere"][task] != digests["answer"][task]}
    assert changed == {"cola", "mnli", "mrpc", "qqp"}


def test_prompts_are_cut_off(pool: Open, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    inner = Seq2SeqLM.encode

    def seen(self: Seq2SeqLM, module: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        widths.append(ids.shape[1])
        assert int(mask[0].sum()) == ids.shape[1]  # never padded beyond the longest
        return inner(self, module, ids, mask)

    monkeypatch.setattr(Seq2SeqLM, "encode", seen)
    pool(select=["mnli"], max_input_length=100).evaluate(make_checkpoint(), settings=ONE)
    assert max(widths) == 100


def test_out_of_memory_halves_the_group(
    without_times: Strip, pool: Open, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = without_times(pool(select=["mnli"], cache=False).evaluate(make_checkpoint(), settings=ONE))
    inner = Seq2SeqLM.decode

    def scarce(self: Seq2SeqLM, module: Any, states: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(states) > 2:
            raise torch.OutOfMemoryError
        return inner(self, module, states, *rest)

    monkeypatch.setattr(Seq2SeqLM, "decode", scarce)
    assert without_times(pool(select=["mnli"], cache=False).evaluate(make_checkpoint(), settings=ONE)) == expected


def test_a_model_that_cannot_be_run_is_refused_by_name(pool: Open) -> None:
    checkpoint = MemoryCheckpoint({"wte.weight": torch.zeros(2, 2)}, {"model_type": "gpt2"})
    with pytest.raises(CheckpointError, match="'gpt2' can be fused"):
        pool().evaluate(checkpoint, settings=ONE)


def test_a_model_without_start_token_is_refused(pool: Open, make_checkpoint: Make) -> None:
    checkpoint = make_checkpoint()
    config = {k: v for k, v in checkpoint.config.items() if k != "decoder_start_token_id"}
    with pytest.raises(CheckpointError, match="decoder_start_token_id"):
        pool().evaluate(MemoryCheckpoint(dict(checkpoint), config), settings=ONE)


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
def test_devices_that_are_not_there(pool: Open, make_checkpoint: Make, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device={device}"):
        pool().evaluate(make_checkpoint(), settings=Settings(device=device))


def test_threads_are_as_before(pool: Open, make_checkpoint: Make) -> None:
    before = torch.get_num_threads()
    pool(select=["cola"]).evaluate(make_checkpoint(), settings=Settings(device="cpu", threads=before + 1))
    assert torch.get_num_threads() == before
    assert threading.active_count() < 20


@pytest.mark.data
def test_majority_baselines_of_the_real_data(
    real_data: Path, pool: Open, make_checkpoint: Make, answering: Any
) -> None:
    answering(lambda prompt: "yes")
    made = pool(data_dir=str(real_data))
    report = made.evaluate(make_checkpoint(), settings=ONE)
    shares = {task: round(100 * report[task]["majority"], 2) for task in ("cola", "mrpc", "qnli", "rte", "sst2")}
    assert shares == {"cola": 69.13, "mrpc": 68.38, "qnli": 50.54, "rte": 52.71, "sst2": 50.92}
    assert report["rte"]["accuracy"] == report["rte"]["majority"]
    assert (report["stsb"]["n"], report["stsb"]["spearman_rho"], report["stsb"]["constant"]) == (1500, 0.0, True)
