"""The table: headings whole, negative transfer marked, nothing cut off outside a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from fusion_bench.report.outputs import write_json
from fusion_bench.report.table import Row, print_table

TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")


def results(score: float, **more: object) -> dict[str, object]:
    found: dict[str, object] = {
        task: {"accuracy": score, "n": 640, "stderr": 0.01, "majority": 0.5, **more} for task in TASKS[:-1]
    }
    found["stsb"] = {"spearman_rho": score, "n": 640, "stderr": 0.02}
    return found


def printed(rows: list[Row]) -> list[str]:
    stream = io.StringIO()
    print_table(rows, stream=stream)
    return [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]


def test_headings_and_scores() -> None:
    lines = printed([Row("a very long label that would not fit into eighty columns beside the scores", results(0.5))])
    assert lines[0].split() == [*TASKS, "average"]
    assert lines[2].split()[-9:] == ["50.0"] * 9
    assert lines[3].split() == ["majority", "class", *["50.0"] * 7]
    assert lines[4].split() == ["n", *["640"] * 8]
    assert lines[5].split() == ["standard", "error", *["±1.0"] * 7, "±2.0", "±0.4"]
    assert "…" not in "".join(lines)


def test_negative_transfer_is_marked() -> None:
    worse = results(0.7)
    worse["rte"] = {"accuracy": 0.5, "n": 640}
    lines = printed([Row("base", results(0.6), reference=True), Row("merged", worse, base=results(0.6))])
    assert lines[3].split()[1:9] == ["70.0", "70.0", "70.0", "70.0", "70.0", "50.0↓", "70.0", "70.0"]
    assert lines[-1] == "↓ below the base"


def test_what_scores_do_not_tell() -> None:
    row = results(0.0, invalid_rate=1.0, collapsed=True)
    row["rte"] = {"error": "CheckpointError: gone"}
    text = "\n".join(printed([Row("λ=1", row)]))
    assert "λ=1: outputs that are no answer: cola 100 %" in text
    assert "λ=1: all answers fall into one class: cola" in text
    assert "λ=1: rte failed: CheckpointError: gone" in text
    assert "failed" in text.splitlines()[2]


def test_tasks_that_were_not_evaluated_are_left_blank() -> None:
    some = {"cola": results(0.9)["cola"]}
    lines = printed([Row("individual", some), Row("merged", results(0.5))])
    assert lines[2].split() == ["individual", "90.0", "-"]


def test_reports_are_strict_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    write_json(file, {"a": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": float("nan")})
    assert json.loads(file.read_text()) == {"a": 1.5}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
