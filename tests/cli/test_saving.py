"""save_model and verify on the command line: complete, unfinished, damaged and other commands' outputs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusion_bench.checkpoint.contents import PARTIAL
from fusion_bench.checkpoint.memory import MemoryCheckpoint

DONE = "out: complete, written by this command before; nothing to do"


def test_the_same_command_again(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    arguments = ("method=task_arithmetic", "modelpool=folder", f"modelpool.path={pool}", "save_model=out")
    assert "saved out" in command(*arguments).err
    before = (tmp_path / "out" / "fusion_bench.json").read_bytes()
    for more in (
        [],
        ["threads=2"],
        ["progress=false"],
        ["overwrite=true"],
        [f"modelpool.path={os.path.relpath(pool)}"],
    ):
        again = command(*arguments, *more)
        assert again.status == 0
        assert DONE in again.err
    assert (tmp_path / "out" / "fusion_bench.json").read_bytes() == before
    assert str(pool) not in before.decode(), "outputs are published: no paths of this machine"


def test_a_complete_output_is_evaluated(command: Callable[..., Any], tmp_path: Path) -> None:
    assert command("save_model=out").status == 0
    ran = command(
        "save_model=out", "taskpool=mini-t5_glue_text_generation", "taskpool.limit=4", "taskpool.select=[sst2]",
        "save_report=r.json",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert DONE in ran.err
    assert json.loads((tmp_path / "r.json").read_text())["sst2"]["n"] == 4


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("seed=7", "seed: 42, not 7"),
        ("dtype=bfloat16", "dtype: null, not"),
        ("method.scaling_factor=0.4", "method.scaling_factor: 0.3, not 0.4"),
        ("shard_size=1MB", "shard_bytes: 5000000000, not 1000000"),
        ("modelpool.select=[cola,sst2]", "method=task_arithmetic"),
        ("method=simple_average", "method=task_arithmetic"),
    ],
)
def test_another_command(command: Callable[..., Any], tmp_path: Path, change: str, word: str) -> None:
    assert command("method=task_arithmetic", "save_model=out").status == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    arguments = ["method=task_arithmetic", "save_model=out", change]
    if change.startswith("method="):
        del arguments[0]
    ran = command(*arguments)
    assert ran.status == 2
    assert ran.err.startswith("error: save_model=out: holds the output of another command")
    assert word in ran.err
    assert "overwrite=true" in ran.err
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    ran = command(*arguments, "overwrite=true")
    assert ran.status == 0, ran.err
    assert command("verify", "out").status == 0


def test_changed_inputs_are_another_command(command: Callable[..., Any], pool: Path) -> None:
    arguments = ("modelpool=folder", f"modelpool.path={pool}", "save_model=out")
    assert command(*arguments).status == 0
    os.utime(pool / "b" / "model.safetensors")
    assert "inputs.b.files.model.safetensors.mtime_ns" in command(*arguments).err
    assert command(*arguments, "overwrite=true").status == 0
    config = json.loads((pool / "base" / "config.json").read_text())
    (pool / "base" / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.0}))
    assert "config" in command(*arguments).err


def test_inputs_of_the_hub_are_known_by_commit(command: Callable[..., Any], hub: Path, tmp_path: Path) -> None:
    assert command("modelpool=flan-t5-base_glue", "save_model=out").status == 0
    origin = json.loads((tmp_path / "out" / "fusion_bench.json").read_text())["origin"]
    assert origin["inputs"][0]["model"] == "google/flan-t5-base"
    assert "mtime" not in json.dumps(origin)
    for file in hub.rglob("model.safetensors"):
        os.utime(file)
    assert DONE in command("modelpool=flan-t5-base_glue", "save_model=out").err


# Cut short

_SLOW = """
import sys, time
from fusion_bench.checkpoint import weights
honest = weights._write
count = 0
def slow(*arguments):
    global count
    count += 1
    if count == 20:
        print("writing", flush=True)
    time.sleep(0.02 if count >= 20 else 0)
    honest(*arguments)
weights._write = slow
from fusion_bench.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_stopped_and_continued(
    command: Callable[..., Any], pool: Path, tmp_path: Path, sent: signal.Signals, status: int, tiny: Any
) -> None:
    # Large enough for several runs.
    import torch
    from safetensors.torch import save_file

    for name in ("base", "a", "b", "c"):
        save_file({f"t{i:02}": torch.randn(40_000) for i in range(40)}, pool / name / "model.safetensors")
    arguments = ("modelpool=folder", f"modelpool.path={pool}", "save_model=out", "threads=1")
    assert command(*arguments).status == 0
    expected = (tmp_path / "out" / "fusion_bench.json").read_bytes()
    shutil.rmtree(tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, *arguments],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    time.sleep(0.1)
    process.send_signal(sent)
    _, err = process.communicate()
    assert process.returncode == status, err
    if sent != signal.SIGKILL:
        assert "out: not finished. What is done is kept in out/.partial: the same command continues it." in err
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [PARTIAL]
    unfinished = command("verify", "out")
    assert (unfinished.status, "unfinished" in unfinished.out) == (1, True)
    refused = command(*arguments, "method=dummy")
    assert refused.status == 2
    assert "unfinished output of another command (method=simple_average" in refused.err
    ran = command(*arguments)
    assert ran.status == 0, ran.err
    assert "of it were there" in ran.err
    assert (tmp_path / "out" / "fusion_bench.json").read_bytes() == expected
    assert command("verify", "out").status == 0


def test_bad_values_leave_nothing(command: Callable[..., Any], pool: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for name in ("base", "a", "b", "c"):
        values = {f"t{i:02}": torch.randn(40_000) for i in range(40)}
        if name == "b":
            values["t33"][7] = float("nan")
        save_file(values, pool / name / "model.safetensors")
    ran = command("modelpool=folder", f"modelpool.path={pool}", "save_model=out", "threads=1")
    assert ran.status == 1
    assert "'t33'" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_checks_the_place_without_torch(pool: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from fusion_bench.cli import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    arguments = ("modelpool=folder", f"modelpool.path={pool}", "save_model=out", "dry_run=true")
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


# verify


def test_verify(command: Callable[..., Any], tmp_path: Path) -> None:
    assert command("save_model=one", "shard_size=100KB").status == 0
    assert command("save_model=two", "method=dummy").status == 0
    ran = command("verify", "one", "two/", "threads=2", "progress=false")
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["one: whole", "two: whole"]
    file = tmp_path / "one" / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    shard = sorted((tmp_path / "one").glob("*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (tmp_path / "other").mkdir()
    ran = command("verify", "one", "two")
    assert ran.status == 1
    assert "one: damaged\n  tokenizer.json: wrong digest\n  tensor '" in ran.out
    assert f"wrong digest in {shard.name}\ntwo: whole" in ran.out
    ran = command("verify", "two", "other", "nowhere")
    assert ran.status == 2
    assert "other: not an output of fusion_bench" in ran.out
    assert "nowhere: no such folder" in ran.out


def test_verify_several_models_of_one_command(command: Callable[..., Any], tmp_path: Path) -> None:
    import torch

    from fusion_bench.checkpoint.parts import part_origin, write_parts_manifest
    from fusion_bench.checkpoint.writer import save

    for part in ("a", "b"):
        save(MemoryCheckpoint({"x": torch.ones(3)}), tmp_path / "out" / part, origin=part_origin({}, part))
    write_parts_manifest(tmp_path / "out", ["a", "b"], {})
    ran = command("verify", "out")
    assert ran.status == 0
    assert ran.out.splitlines() == [f"out/{part}: whole (1 tensors, 0.00 GB)" for part in "ab"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [([], "usage: fusion_bench verify"), (["--al", "x"], "--help"), (["x", "threads=a"], "threads=a")],
)
def test_verify_mistakes(command: Callable[..., Any], arguments: list[str], word: str) -> None:
    ran = command("verify", *arguments)
    assert ran.status == 2
    assert word in ran.err


def test_verify_help(command: Callable[..., Any]) -> None:
    ran = command("verify", "--help")
    assert ran.status == 0
    assert "exit status: 0 all whole, 1 damaged or unfinished, 2 not an output" in ran.out


def test_what_is_there_is_not_computed_again_for_its_remarks(command: Callable[..., Any], tmp_path: Path) -> None:
    words = ("method=ties_merging", "save_model=m", "save_report=r.json")
    assert command(*words).status == 0
    assert not any("already" in remark for remark in report(tmp_path)["run"]["remarks"])
    assert command(*words).status == 0
    (remark,) = report(tmp_path)["run"]["remarks"]
    assert remark.startswith("the model was there already")


def report(folder: Path) -> Any:
    return json.loads((folder / "r.json").read_text(encoding="utf-8"))
