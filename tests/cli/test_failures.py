"""What goes wrong while a run is under way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    "taskpool=mini-t5_glue_text_generation", "taskpool.split=validation", "taskpool.limit=4",
    "taskpool.select=[sst2,rte]", "threads=1",
)  # fmt: skip


def test_a_failed_task_leaves_the_others(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion_bench.taskpool.text_generation import GlueTextGeneration

    score = GlueTextGeneration._score

    def failing(self: Any, task: str, *arguments: Any) -> Any:
        if task == "rte":
            raise RuntimeError("no luck")
        return score(self, task, *arguments)

    monkeypatch.setattr(GlueTextGeneration, "_score", failing)
    ran = command("method=dummy", *SMALL, "save_report=r.json")
    assert ran.status == 1
    assert "tasks failed: rte" in ran.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["sst2"]["n"] == 4
    assert "no luck" in report["rte"]["error"]
    assert report["average_of"] == ["sst2"]
    assert "no luck" in ran.out


def test_interrupt_keeps_what_is_done(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion_bench.taskpool.text_generation import GlueTextGeneration

    score = GlueTextGeneration._score
    calls: list[str] = []

    def interrupted(self: Any, task: str, *arguments: Any) -> Any:
        calls.append(task)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(self, task, *arguments)

    monkeypatch.setattr(GlueTextGeneration, "_score", interrupted)
    arguments = ("-m", "method=dummy,simple_average,task_arithmetic", *SMALL, "save_report=r.json")
    ran = command(*arguments)
    assert ran.status == 130
    assert "dummy" in ran.out
    assert len(json.loads((tmp_path / "r.json").read_text())["runs"]) == 1
    monkeypatch.setattr(GlueTextGeneration, "_score", score)
    again = command(*arguments)
    assert again.status == 0, again.err
    runs = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert len(runs) == 3
    # The fourth evaluation was the first that did not happen: sst2 of the second job.
    assert runs[0]["sst2"]["cached"] == runs[1]["rte"]["cached"] == 4
    assert runs[1]["sst2"]["cached"] == 0
