"""`save_adapter` on the command line: written, evaluated as written, refused before work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_bench import fuse, open_checkpoint, open_modelpool
from fusion_bench.checkpoint.adapter import AdapterCheckpoint
from fusion_bench.method import method_class

EVALUATED = ("taskpool=mini-t5_glue_text_generation", "taskpool.split=validation", "taskpool.select=[rte]",
             "taskpool.limit=4", "threads=1")  # fmt: skip


def test_saved_and_evaluated(command: Callable[..., Any], tmp_path: Path) -> None:
    """What is saved as a model, and evaluated, is the base with the adapter that was written."""
    ran = command("method=ties_merging", "save_adapter=a", "rank=4", "save_model=m", "save_report=r.json", *EVALUATED)
    assert ran.status == 0, ran.err
    base = open_modelpool({"type": "embedded"}).base
    adapter, model = AdapterCheckpoint(base, tmp_path / "a"), open_checkpoint(tmp_path / "m")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 4
    assert "library_name: peft" in (tmp_path / "a" / "README.md").read_text()
    for name in adapter:
        assert torch.equal(adapter[name], model[name])
    report = json.loads((tmp_path / "r.json").read_text())
    assert any("rank=4: the adapter keeps" in remark for remark in report["run"]["remarks"])
    assert report["run"]["settings"]["rank"] == 4
    again = command("method=ties_merging", "save_adapter=a", "rank=4", "save_model=m", "save_report=s.json", *EVALUATED)
    assert again.status == 0, again.err
    assert json.loads((tmp_path / "s.json").read_text())["run"]["remarks"] == report["run"]["remarks"]
    assert again.err.count("complete, written by this command before") == 2
    other = command("method=ties_merging", "save_adapter=a", "rank=5")
    assert other.status == 2
    assert "save_adapter=a: holds the output of another command" in other.err
    plain = command("method=ties_merging", "save_model=m")
    assert plain.status == 2
    assert "another command" in plain.err


def test_a_linear_method_is_the_dense_merge(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command("method=task_arithmetic", "save_adapter=a")
    assert ran.status == 0, ran.err
    pool = open_modelpool({"type": "embedded"})
    merged = fuse(method_class("task_arithmetic")(), pool, dtype="float32")
    adapter = AdapterCheckpoint(pool.base, tmp_path / "a")
    for name in merged:
        torch.testing.assert_close(adapter[name].float(), merged[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rank=4"], "rank=4: says how an adapter is made"),
        (["adapter_space=core"], "adapter_space=core: says how an adapter is made"),
        (["save_adapter=a", "rank=0"], "rank=0: expected 1 to"),
        (["save_adapter=a", "rank=many"], "rank=many"),
        (["save_adapter=a", "adapter_space=cor"], "did you mean 'core'"),
        (["save_adapter=a", "adapter_space=dense"], "needs a rank"),
        (["save_adapter=a", "method=dummy"], "method=dummy does not make"),
        (["save_adapter=a", "save_model=a/m"], "inside save_adapter=a"),
        (["save_adapter="], "save_adapter= is empty"),
        (["save_adapter=thesis"], "save_adapter=thesis: holds other files"),
    ],
)
def test_refused_before_work(command: Callable[..., Any], tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    ran = command("method=task_arithmetic", *words)
    assert ran.status == 2
    assert message.lower() in ran.err.lower()
    assert {path.name for path in tmp_path.iterdir()} == {"thesis"}


def test_full_models(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    here = ("modelpool=folder", f"modelpool.path={pool}", "save_adapter=a")
    refused = command("method=simple_average", *here, "rank=2")
    assert refused.status == 2
    assert "adapter_others=save" in refused.err
    assert not (tmp_path / "a").exists()
    ran = command("method=simple_average", *here, "rank=0.9", "adapter_others=save")
    assert ran.status == 0, ran.err
    assert "rank=0.9: the adapter keeps" in ran.err
    assert command("method=simple_average", *here, "rank=2", "dry_run=true", "adapter_space=core").status == 2


def test_models_of_the_hub_keep_their_name(command: Callable[..., Any], hub: Path, tmp_path: Path) -> None:
    ran = command("method=simple_average", "modelpool=flan-t5-base_glue_lora16", "save_adapter=a")
    assert ran.status == 0, ran.err
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "google/flan-t5-base"
    assert written["target_modules"] == ["q", "v"]


def test_a_dry_run_says_how(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command("method=ties_merging", "save_adapter=a", "dry_run=true")
    assert ran.status == 0, ran.err
    assert "would save a (one adapter: merged in Core Space)" in ran.out
    assert not list(tmp_path.iterdir())


def test_a_sweep_needs_folders_of_its_own(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command("-m", "method=task_arithmetic", "method.scaling_factor=0.1,0.2", "save_adapter=a")
    assert ran.status == 2
    assert "save_adapter=a: all jobs" in ran.err
    ran = command("-m", "method=task_arithmetic", "rank=2,4", "save_adapter=a/${rank}")
    assert ran.status == 0, ran.err
    assert (tmp_path / "a" / "2" / "adapter_model.safetensors").is_file()
