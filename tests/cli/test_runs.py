"""Whole runs on the embedded pool and on folders: outputs, sweeps, references, dry runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    "taskpool=mini-t5_glue_text_generation",
    "taskpool.split=validation",
    "taskpool.limit=8",
    "taskpool.select=[sst2,stsb]",
    "threads=1",
)


def test_report_and_table(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command("method=task_arithmetic", *SMALL, "save_report=report.json", "save_predictions=answers")
    assert ran.status == 0, ran.err
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert list(report) == ["model_info", "sst2", "stsb", "average", "run"]
    run = report["run"]
    assert run["schema"] == 1
    assert run["method"] == {"name": "task_arithmetic", "scaling_factor": 0.3}
    assert run["seed"] == 42
    assert {"python", "torch", "transformers", "fusion-bench"} <= set(run["versions"])
    assert set(run["inputs"]) == {"_pretrained_", "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"}
    assert report["sst2"]["n"] == 8
    rows = [json.loads(line) for line in (tmp_path / "answers" / "sst2.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert {"id", "prompt_digest", "output", "target"} <= set(rows[0])
    correct = sum(row["output"] == row["target"] for row in rows)
    assert report["sst2"]["accuracy"] == correct / 8
    assert "average" in ran.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answers", "report.json"]


def test_sweep_is_one_table_and_one_report(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command(
        "-m", "method=task_arithmetic", "method.scaling_factor=0.0,0.3", *SMALL, "save_report=sweep.json",
        "save_model=models/${method.scaling_factor}", "taskpool.references=true",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [run["run"]["overrides"] for run in runs] == [
        ["method.scaling_factor=0.0", "save_model=models/${method.scaling_factor}"][:1],
        ["method.scaling_factor=0.3"],
    ]
    references = runs[0]["run"]["references"]
    # The base and the merge with factor 0 are one model.
    for task in ("sst2", "stsb"):
        metric = "accuracy" if task == "sst2" else "spearman_rho"
        assert references["base"][task][metric] == runs[0][task][metric]
    assert set(references["individual"]) == {"sst2", "stsb", "average"}
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["0.0", "0.3"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models", "sweep.json"]
    lines = ran.out.splitlines()
    starts = ("base", "individual", "scaling_factor=0.0", "scaling_factor=0.3", "n", "standard error")
    for start in starts:
        assert any(line.strip().startswith(start) for line in lines), ran.out


def test_sweep_over_methods(command: Callable[..., Any]) -> None:
    ran = command("-m", "method=dummy,simple_average,ties_merging", *SMALL)
    assert ran.status == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines() if line.strip()][2:5] == [
        "dummy",
        "simple_average",
        "ties_merging",
    ]


def test_sweep_refuses_one_folder_for_all(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command("-m", "method=dummy,simple_average", "save_model=out")
    assert ran.status == 2
    assert "${method.name}" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_bad_value_stops_a_sweep_before_it_begins(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command("-m", "method=ties_merging", "method.threshold=20,300", "save_report=r.json")
    assert ran.status == 2
    assert "300" in ran.err
    assert not (tmp_path / "r.json").exists()


def test_another_launcher_can_be_chosen(command: Callable[..., Any]) -> None:
    ran = command("-m", "method=dummy,simple_average", "hydra/launcher=basic")
    assert ran.status == 0, ran.err
    assert ran.out.count("model_info") == 2


def test_dry_run_writes_nothing(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command("method=ties_merging", "dry_run=true", "save_model=out", "save_report=r/x.json", *SMALL)
    assert ran.status == 0, ran.err
    assert "nothing was computed" in ran.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["false", "null"])
def test_report_can_be_switched_off(command: Callable[..., Any], tmp_path: Path, value: str) -> None:
    ran = command("method=dummy", f"save_report={value}")
    assert ran.status == 0, ran.err
    assert list(tmp_path.iterdir()) == []


def test_saved_model_loads_and_agrees(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    ran = command("modelpool=folder", f"modelpool.path={pool}", "save_model=out", "shard_size=20KB")
    assert ran.status == 0, ran.err
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").state_dict()
    experts = [AutoModelForSeq2SeqLM.from_pretrained(pool / name).state_dict() for name in "abc"]
    for name, tensor in merged.items():
        mean = torch.stack([expert[name].double() for expert in experts]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "simple_average" in card


def test_full_digests_on_request(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    import hashlib

    arguments = ("modelpool=folder", f"modelpool.path={pool}", "save_report=r.json", "digests=true")
    assert command(*arguments).status == 0
    text = (tmp_path / "r.json").read_text()
    for name in ("base", "a", "b", "c"):
        assert hashlib.sha256((pool / name / "model.safetensors").read_bytes()).hexdigest() in text


def test_pool_from_a_yaml_file(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        f"models:\n  - {{name: _pretrained_, path: {pool}/base}}\n  - {{name: x, path: {pool}/a}}\n"
    )
    ran = command("modelpool=./my.yaml", "modelpool.models.1.path=" + str(pool / "b"), "save_model=out")
    assert ran.status == 0, ran.err
    again = command("modelpool=./my.yaml", f"modelpool.models.x.path={pool}/b", "save_model=out2")
    assert again.status == 0, again.err
    first, second = (tmp_path / out / "model.safetensors" for out in ("out", "out2"))
    assert first.read_bytes() == second.read_bytes()


def test_pool_without_base(command: Callable[..., Any], pool: Path) -> None:
    import shutil

    shutil.rmtree(pool / "base")
    assert command("modelpool=folder", f"modelpool.path={pool}").status == 0
    ran = command("modelpool=folder", f"modelpool.path={pool}", "method=task_arithmetic")
    assert ran.status == 2
    assert "base" in ran.err


def test_config_dir_adds_pools(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "modelpool").mkdir(parents=True)
    (tmp_path / "own" / "modelpool" / "mine.yaml").write_text(f"type: folder\npath: {pool}\n")
    ran = command("--config-dir", "own", "modelpool=mine", "dry_run=true")
    assert ran.status == 0, ran.err
    assert "3 models" in ran.out


def test_completion_offers_methods(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "fusion_bench method=ti")
    monkeypatch.setenv("COMP_POINT", str(len("fusion_bench method=ti")))
    ran = command("-sc", "query=bash")
    assert "method=ties_merging" in ran.out


@pytest.mark.parametrize("method", ["dummy", "simple_average"])
def test_dtype_of_the_saved_model(command: Callable[..., Any], pool: Path, tmp_path: Path, method: str) -> None:
    from safetensors.torch import load_file

    ran = command(f"method={method}", "modelpool=folder", f"modelpool.path={pool}", "dtype=bfloat16", "save_model=out")
    assert ran.status == 0, ran.err
    assert {str(t.dtype) for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {"torch.bfloat16"}
    assert "bfloat16" in (tmp_path / "out" / "config.json").read_text()


def test_options_may_follow_overrides(command: Callable[..., Any]) -> None:
    ran = command("progress=false", "-m", "method=dummy,simple_average")
    assert ran.status == 0, ran.err
    assert ran.out.count("model_info") == 2


def test_index_of_a_plain_path(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"models: {{_pretrained_: {pool}/base, x: nowhere}}\n")
    ran = command("modelpool=./my.yaml", f"modelpool.models.1.path={pool}/a", "dry_run=true")
    assert ran.status == 0, ran.err


def test_output_is_no_member(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"models: {{a: {pool}/a, b: {pool}/b}}\n")
    before = (pool / "a" / "model.safetensors").read_bytes()
    ran = command("modelpool=./my.yaml", f"save_model={pool}/a", "overwrite=true")
    assert ran.status == 2
    assert "an input of this run" in ran.err
    assert (pool / "a" / "model.safetensors").read_bytes() == before


def test_own_files_beside_a_former_output_are_kept(command: Callable[..., Any], tmp_path: Path) -> None:
    assert command("save_model=out").status == 0
    assert command("save_model=out").status == 0, "a former output is replaced"
    (tmp_path / "out" / "pytorch_model.bin").write_bytes(b"mine")
    ran = command("save_model=out")
    assert ran.status == 2
    assert "pytorch_model.bin" in ran.err
    assert (tmp_path / "out" / "pytorch_model.bin").read_bytes() == b"mine"


def test_overflow_of_the_written_type(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command("method=task_arithmetic", "method.scaling_factor=1e7", "save_model=out")
    assert ran.status == 1
    assert "float16" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_evaluated_is_refused_first(command: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "pool" / "a")
    ran = command("modelpool=folder", "modelpool.path=pool", "taskpool=mini-t5_glue_text_generation", "save_model=out")
    assert ran.status == 2
    assert "llama" in ran.err
    assert not (tmp_path / "out").exists()


def test_configs_that_differ_are_said(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    file = pool / "b" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_norm_epsilon": 0.5}))
    ran = command("modelpool=folder", f"modelpool.path={pool}", "save_model=out", "save_report=r.json")
    assert ran.status == 0, ran.err
    (remark,) = json.loads((tmp_path / "r.json").read_text())["run"]["remarks"]
    assert "'b'" in remark
    assert "layer_norm_epsilon (0.5, not 1e-06)" in remark
    assert remark in ran.err


def test_each_run_of_a_sweep_is_set_against_its_own_base(command: Callable[..., Any]) -> None:
    """Conditions that are swept have references of their own, and marks are set by them."""
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    ran = command(
        "-m", "method=simple_average", "modelpool=mini-clip_vision", "taskpool=mini-clip_vision", "threads=1",
        "taskpool.split=validation", "taskpool.limit=40", "taskpool.select=[digits]", "modelpool.select=[digits]",
        "taskpool.references=true", "taskpool.corruption=null,contrast", "progress=false",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert "base (taskpool.corruption=null)" in ran.out
    assert "individual (taskpool.corruption=contrast)" in ran.out
    # Contrast takes most of the score away from the base as well: that is no negative transfer.
    [line] = [line for line in ran.out.splitlines() if line.split()[:1] == ["taskpool.corruption=contrast"]]
    assert "↓" not in line
