"""The commands of the Flan-T5 documentation page, word for word, against tiny models under the published names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")

BLOCKS = {
    "base info": r"""
fusion_bench \
    modelpool=flan-t5-base_glue \
    method=dummy taskpool=dummy
""",
    "large info": r"""
fusion_bench \
    modelpool=flan-t5-large_glue \
    method=dummy taskpool=dummy
""",
    "pretrained": r"""
fusion_bench \
    method=dummy \
    modelpool=flan-t5-base_individual \
        modelpool.models.0.path=google/flan-t5-base \
    taskpool=flan-t5_glue_text_generation \
    save_report=outputs/flan-t5-base/pretrained.json
""",
    "fine-tuned": r"""
for task in cola mnli mrpc qnli qqp rte sst2 stsb; do
    fusion_bench \
        method=dummy \
        modelpool=flan-t5-base_individual \
            modelpool.models.0.path=tanganke/flan-t5-base_glue-${task} \
        taskpool=flan-t5_glue_text_generation \
        save_report=outputs/flan-t5-base/glue-$task.json
done
""",
    "simple average": r"""
fusion_bench \
    method=simple_average \
    modelpool=flan-t5-base_glue_lora16 \
    taskpool=flan-t5_glue_text_generation
""",
    "task arithmetic": r"""
for scaling_factor in $(seq 0.0 0.1 1.0)
do
    fusion_bench \
        method=task_arithmetic \
            method.scaling_factor=$scaling_factor \
        modelpool=flan-t5-base_glue_lora16 \
        taskpool=flan-t5_glue_text_generation
done
""",
    "ties merging": r"""
for scaling_factor in $(seq 0.0 0.1 1.0)
do
    fusion_bench \
        method=ties_merging \
            method.scaling_factor=$scaling_factor \
        modelpool=flan-t5-base_glue_lora16 \
        taskpool=flan-t5_glue_text_generation
done
""",
}


@pytest.fixture
def page(
    command: Callable[..., Any], hub: Path, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[Any]]:
    """Runs a block of the page: bash expands it, each command it calls then runs in this process."""
    monkeypatch.setenv("FUSION_BENCH_DATA", str(glue))

    def run(block: str) -> list[Any]:
        calls = tmp_path / "calls"
        shim = f"import json, sys; open({str(calls)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
        script = f'fusion_bench() {{ {sys.executable} -c "{shim}" "$@"; }}\n' + block
        subprocess.run(["bash", "-euc", script], check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
        arguments = [json.loads(line) for line in calls.read_text().splitlines()]
        calls.unlink()
        return [command(*words) for words in arguments]

    return run


@pytest.mark.parametrize("name", ["base info", "large info"])
def test_model_information(page: Callable[[str], list[Any]], name: str) -> None:
    (ran,) = page(BLOCKS[name])
    assert ran.status == 0, ran.err
    info = ran.out.strip()
    assert info.startswith("{'model_info': {'trainable_params': ")
    assert info.endswith("'trainable_percentage': 1.0}}")


def test_pretrained_report(page: Callable[[str], list[Any]], tmp_path: Path) -> None:
    (ran,) = page(BLOCKS["pretrained"])
    assert ran.status == 0, ran.err
    report = json.loads((tmp_path / "outputs/flan-t5-base/pretrained.json").read_text())
    assert list(report) == ["model_info", *TASKS, "average", "run"]
    assert set(report["model_info"]) == {"trainable_params", "all_params", "trainable_percentage"}
    assert "accuracy" in report["cola"]
    assert "spearman_rho" in report["stsb"]
    scores = [report[task].get("accuracy", report[task].get("spearman_rho")) for task in TASKS]
    assert report["average"] == pytest.approx(sum(scores) / 8)
    assert report["run"]["inputs"]["_pretrained_"]["commit"] == "0123456789abcdef0123456789abcdef01234567"
    for word in (*TASKS, "average"):
        assert word in ran.out.splitlines()[1]
    # Nothing beside the report: no outputs/ of Hydra's own, no logs.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outputs"]


def test_every_fine_tuned_model(page: Callable[[str], list[Any]], tmp_path: Path) -> None:
    runs = page(BLOCKS["fine-tuned"])
    assert [ran.status for ran in runs] == [0] * 8
    written = {path.name for path in (tmp_path / "outputs/flan-t5-base").iterdir()}
    assert written == {f"glue-{task}.json" for task in TASKS}


def test_simple_average(page: Callable[[str], list[Any]]) -> None:
    (ran,) = page(BLOCKS["simple average"])
    assert ran.status == 0, ran.err
    assert "simple_average" in ran.out


@pytest.mark.parametrize("name", ["task arithmetic", "ties merging"])
def test_sweeps(page: Callable[[str], list[Any]], name: str) -> None:
    runs = page(BLOCKS[name])
    assert [ran.status for ran in runs] == [0] * 11, runs[0].err
    assert "scaling_factor=0.7" in runs[7].out


def test_zero_is_the_pretrained_model(page: Callable[[str], list[Any]], tmp_path: Path) -> None:
    page(BLOCKS["pretrained"])
    page(
        "fusion_bench method=task_arithmetic method.scaling_factor=0.0 modelpool=flan-t5-base_glue_lora16 "
        "taskpool=flan-t5_glue_text_generation save_report=zero.json taskpool.cache=false"
    )
    before = json.loads((tmp_path / "outputs/flan-t5-base/pretrained.json").read_text())
    after = json.loads((tmp_path / "zero.json").read_text())
    for task in TASKS:
        assert {k: v for k, v in before[task].items() if k not in ("seconds", "cached")} == {
            k: v for k, v in after[task].items() if k not in ("seconds", "cached")
        }


@pytest.mark.parametrize(
    "line",
    [
        "fusion_bench method=dummy modelpool=Seq2SeqLMPool/flan-t5-base_glue taskpool=dummy report_save_path=r.json",
        "fusion_bench method=dummy modelpool=Seq2SeqLMPool/flan-t5-base_individual taskpool=dummy save_report=r.json "
        "modelpool.models._pretrained_.pretrained_model_name_or_path=tanganke/flan-t5-base_glue-rte",
        "fusion_bench method=simple_average modelpool=Seq2SeqLMPool/flan-t5-base_glue_lora16 taskpool=dummy "
        "save_report=r.json",
    ],
)
def test_later_spellings(page: Callable[[str], list[Any]], tmp_path: Path, line: str) -> None:
    (ran,) = page(line)
    assert ran.status == 0, ran.err
    assert "model_info" in json.loads((tmp_path / "r.json").read_text())


def test_class_paths_of_the_page() -> None:
    from fusion_bench.modelpool.AutoModelForSeq2SeqLM import AutoModelForSeq2SeqLMPool
    from fusion_bench.modelpool.PeftModelForSeq2SeqLM import PeftModelForSeq2SeqLMPool

    assert AutoModelForSeq2SeqLMPool.__doc__
    assert PeftModelForSeq2SeqLMPool.__doc__


def test_pool_classes_load_models(hub: Path) -> None:
    from fusion_bench.modelpool.AutoModelForSeq2SeqLM import AutoModelForSeq2SeqLMPool
    from fusion_bench.modelpool.PeftModelForSeq2SeqLM import PeftModelForSeq2SeqLMPool

    base = {"name": "_pretrained_", "path": "google/flan-t5-base"}
    full = AutoModelForSeq2SeqLMPool([base, {"name": "rte", "path": "tanganke/flan-t5-base_glue-rte"}])
    peft = PeftModelForSeq2SeqLMPool(
        {"_pretrained_": base["path"], "rte": {"path": "tanganke/flan-t5-base_glue-rte_lora-16", "revision": "main"}}
    )
    for pool in (full, peft):
        assert list(pool.models) == ["rte"]
        assert type(pool.load_model("rte")).__name__ == "T5ForConditionalGeneration"
