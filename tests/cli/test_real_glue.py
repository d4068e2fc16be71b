"""The command on the real GLUE validation files, where they are present."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Resolved now: the tests run in folders of their own.
DATA = Path(os.environ.get("FUSION_BENCH_DATA") or Path(__file__).parents[3] / "shared" / "data").resolve()

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not (DATA / "glue").is_dir(), reason="no folder with glue/ (FUSION_BENCH_DATA)"),
]


def test_pool_of_adapters_on_real_tasks(command: Callable[..., Any], hub: Path, tmp_path: Path) -> None:
    arguments = (
        "method=task_arithmetic", "modelpool=flan-t5-base_glue_lora16", "taskpool=flan-t5_glue_text_generation",
        f"taskpool.data_dir={DATA}", "taskpool.limit=20", "threads=1", "save_report=r.json", "save_predictions=answers",
    )  # fmt: skip
    ran = command(*arguments)
    assert ran.status == 0, ran.err
    report = json.loads((tmp_path / "r.json").read_text())
    tasks = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
    assert [report[task]["n"] for task in tasks] == [20] * 8
    assert set(report["run"]["data"]["data"]) == set(tasks)
    assert len((tmp_path / "answers" / "mnli.jsonl").read_text().splitlines()) == 20
    again = command(*arguments)
    assert again.status == 0, again.err
    cached = json.loads((tmp_path / "r.json").read_text())
    for task in tasks:
        assert cached[task]["cached"] == 20
        assert {k: v for k, v in cached[task].items() if k not in ("seconds", "cached")} == {
            k: v for k, v in report[task].items() if k not in ("seconds", "cached")
        }
