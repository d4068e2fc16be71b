"""A user's mistakes: one message that names the thing and the way out, exit status 2, no torch, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CASES = [
    (["metod=ties_merging"], ["'metod'", "Did you mean 'method'?"]),
    (["method=ties_mergin"], ["'ties_mergin'", "Did you mean 'ties_merging'?"]),
    (["method=TiesMerging"], ["Did you mean 'ties_merging'?"]),
    (["method=ties_merging", "method.thresold=3"], ["'method.thresold'", "Did you mean 'method.threshold'?"]),
    (["method.scaling_factor=3"], ["method.scaling_factor", "simple_average"]),
    (["method=ties_merging", "method.threshold=300"], ["method.threshold=300", "at most 100"]),
    (["method=ties_merging", "method.threshold=0"], ["method.threshold=0", "greater than 0"]),
    (["method=ties_merging", "method.merge_func=men"], ["method.merge_func=men", "Did you mean 'mean'?"]),
    (["method=ties_merging", "method.density=0.3", "method.threshold=50"], ["density=0.3", "threshold=50"]),
    (["method=ties_merging", "method.compat=peft", "method.zero_sum=majority"], ["zero_sum", "compat=peft"]),
    (["method=task_arithmetic", "method.scaling_factor=abc"], ["method.scaling_factor=abc", "a number"]),
    (["method=task_arithmetic", "method.scaling_factor=.nan"], ["method.scaling_factor", "number"]),
    (["method=task_arithmetic", "method.scaling_factor=0,3"], ["0.3", "LC_NUMERIC=C"]),
    (["method=simple_average,dummy"], ["-m"]),
    (["method=weighted_average", "method.weights=[1,2]"], ["2 weights for 8 models"]),
    (["method=weighted_average", "method.weights={colla:1}"], ["'colla'", "Did you mean 'cola'?"]),
    (["method=weighted_average", "method.weights={cola:1}"], ["no weight for mnli"]),
    (["method=weighted_average", "method.weights=[1,-1,0,0,0,0,0,0]"], ["sum to 0", "normalize=false"]),
    (["modelpool=floder"], ["'floder'", "Did you mean 'folder'?", "modelpool=./my.yaml"]),
    (["modelpool=folder"], ["modelpool.path is missing"]),
    (["modelpool=folder", "modelpool.path=nowhere"], ["modelpool.path=nowhere", "missing"]),
    (["modelpool.select=[cola,colla]"], ["'colla'", "Did you mean 'cola'?"]),
    (["modelpool=./nope.yaml"], ["no such file", "nope.yaml"]),
    (["modelpool=flan-t5-base_glue", "modelpool.models.12.path=x"], ["last index is 8", "_pretrained_"]),
    (["modelpool=flan-t5-base_glue", "modelpool.models.colla.path=x"], ["Did you mean", "modelpool.models.cola"]),
    (["taskpool=mini-t5_glue_text_generation", "taskpool.select=[cloa]"], ["cloa", "cola"]),
    (["taskpool=mini-t5_glue_text_generation", "taskpool.limit=0"], ["taskpool.limit=0"]),
    (["taskpool=mini-t5_glue_text_generation", "taskpool.prompt_speling=answer"], ["prompt_spelling"]),
    (
        ["-m", "method=task_arithmetic,ties_merging", "method.scaling_facto=0.1"],
        ["Did you mean 'method.scaling_factor'?"],
    ),
    (["-m", "method=task_arithmetic,simple_average", "method.scaling_factor=0.1"], ["method=simple_average"]),
    (["-m", "method=dummy,simple_average", "thread=1"], ["Did you mean 'threads'?"]),
    (["method=null"], ["method=null", "fusion_bench list methods"]),
    (["save_model="], ["save_model= is empty"]),
    (["save_report="], ["save_report= is empty"]),
    (["modelpool.select=[cola,cola]"], ["cola more than once"]),
    (["save_model=zz", "save_report=zz/config.json"], ["inside save_model=zz"]),
    (["save_model=zz", "save_predictions=zz/p"], ["inside save_model=zz"]),
    (["save_model=zz", "save_report=zz"], ["inside save_model=zz"]),
    (["sed=3"], ["'sed'", "Did you mean 'seed'?"]),
    (["threads=-1"], ["threads=-1", "at least 0"]),
    (["batch_size=0"], ["batch_size=0"]),
    (["dtype=float31"], ["dtype=float31", "Did you mean"]),
    (["device=gpu0"], ["device=gpu0", "cuda:0"]),
    (["shard_size=big"], ["shard_size=big", "5GB"]),
    (["dtype=float16", "taskpool=mini-t5_glue_text_generation"], ["float16", "bfloat16"]),
    (["save_report=a(b).json"], ["save_report=a(b).json", "'save_report=\"a(b).json\"'"]),
    (["modelpool.select=[c d=e,cola]"], ['modelpool.select=["c d=e",cola]']),
    (["dry_run=true", "save_model=/proc/version/x"], ["save_model=/proc/version/x"]),
    (["lst", "methods"], ["'lst'", "Did you mean 'list'?"]),
    (["list", "metods"], ["Did you mean 'methods'?"]),
    (["show", "ties"], ["Did you mean 'ties_merging'?"]),
    (["show"], ["usage: fusion_bench show"]),
]


@pytest.mark.parametrize(("arguments", "words"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_message(command: Callable[..., Any], tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    ran = command(*arguments)
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    for word in words:
        assert word in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list", "methods"],
        ["show", "ties_merging"],
        ["--cfg", "job", "method=ties_merging"],
        ["method=ties_mergin"],
        ["method=ties_merging", "method.threshold=300"],
        ["modelpool=folder", "modelpool.path=nowhere"],
        ["dry_run=true", "method=ties_merging"],
    ],
)
def test_answers_without_torch(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from fusion_bench.cli import main; status = main(sys.argv[1:]); "
        "heavy = sorted({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)); "
        "print('heavy', heavy, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ)
    )
    assert "heavy []" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_inside_the_pool(command: Callable[..., Any], pool: Path) -> None:
    ran = command("modelpool=folder", f"modelpool.path={pool}", f"save_model={pool}/merged")
    assert ran.status == 2
    assert f"inside {pool}, which is an input" in ran.err
    assert not (pool / "merged").exists()


@pytest.mark.parametrize("key", ["save_report", "save_predictions", "save_model"])
def test_unwritable_place(command: Callable[..., Any], tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_text("")
    ran = command(f"{key}=file/inside")
    assert ran.status == 2
    assert "file/inside" in ran.err


def test_foreign_folder_is_kept(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    ran = command("save_model=mine")
    assert ran.status == 2
    assert "thesis.txt" in ran.err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_all_missing_models_are_named(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("models: {_pretrained_: no/base, a: no/a, b: no/b}\n")
    ran = command("modelpool=./my.yaml")
    assert ran.status == 2
    for name in ("no/base", "no/a", "no/b", "hf download"):
        assert name in ran.err


def test_misfits_are_listed_at_once(command: Callable[..., Any], pool: Path) -> None:
    from safetensors.torch import load_file, save_file

    for member, name in (("a", "lm_head.weight"), ("b", "encoder.final_layer_norm.weight")):
        file = pool / member / "model.safetensors"
        tensors = load_file(file)
        if member == "a":
            del tensors[name]
        else:
            tensors[name] = tensors[name][:8].clone()
        save_file(tensors, file, metadata={"format": "pt"})
    ran = command("modelpool=folder", f"modelpool.path={pool}", "save_model=out")
    assert ran.status == 2
    assert "encoder.final_layer_norm.weight" in ran.err
    assert "[b]" in ran.err


def test_not_a_number_is_refused_by_name(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = pool / "b" / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.final_layer_norm.weight"][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    for method in ("simple_average", "task_arithmetic", "ties_merging"):
        ran = command("modelpool=folder", f"modelpool.path={pool}", f"method={method}", "save_model=out")
        assert ran.status == 1
        assert "'b'" in ran.err
        assert "encoder.final_layer_norm.weight" in ran.err
        assert not (tmp_path / "out").exists()


def test_config_folder_in_the_way(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "config" / "method").mkdir(parents=True)
    (tmp_path / "configs" / "method").mkdir(parents=True)
    ran = command("dry_run=true", "method=task_arithmetic")
    assert ran.status == 0, ran.err
    assert "task_arithmetic" in ran.out


@pytest.mark.parametrize(
    "name", ["a(b).json", "x=y.json", "a,b.json", "a[1].json", "my {c}.json", "it's.json", 'q"q.json']
)
def test_the_quoted_form_it_shows_works(command: Callable[..., Any], tmp_path: Path, name: str) -> None:
    import shlex

    ran = command(f"save_report={name}")
    if ran.status == 0:  # the grammar takes some of them as they are
        assert (tmp_path / name).is_file()
        return
    assert ran.status == 2
    marker = "for the shell: " if "for the shell: " in ran.err else "text that holds commas "
    (shown,) = shlex.split(ran.err.partition(marker)[2].strip().rstrip("."))
    again = command(shown)
    assert again.status == 0, again.err
    assert (tmp_path / name).is_file()


def test_not_a_number_in_a_model_that_is_only_copied(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = pool / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.final_layer_norm.weight"][3] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})
    ran = command("modelpool=folder", f"modelpool.path={pool}", "method=dummy", "save_model=out")
    assert ran.status == 1
    assert "encoder.final_layer_norm.weight" in ran.err
    assert not (tmp_path / "out").exists()
