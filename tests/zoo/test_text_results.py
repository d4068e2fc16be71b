"""The recorded scores of three seeds show what the suite promises to show."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fusion_bench.zoo import text

RECORD = json.loads((Path(__file__).parents[2] / "benchmarks" / "accuracy" / "mini_t5_seeds.json").read_text())
SEEDS: dict[str, Any] = RECORD["seeds"]


def test_record_is_of_this_version_and_three_seeds() -> None:
    assert RECORD["suite"] == text.VERSION
    assert RECORD["split"] == "test"
    assert RECORD["n_per_task"] == text.SIZES["test"]
    assert len(SEEDS) == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_order_of_base_average_arithmetic_and_experts(seed: str) -> None:
    row = SEEDS[seed]
    sweep = {scale: scores["average"] for scale, scores in row["task_arithmetic"].items()}
    best = max(sweep, key=sweep.__getitem__)
    assert 0.60 < row["base"]["average"] < 0.78
    assert row["experts_own_average"] > 0.88
    # Two points are about three standard errors of an average over the suite.
    assert row["base"]["average"] + 0.02 < row["simple_average"]["average"]
    assert row["simple_average"]["average"] + 0.02 < sweep[best]
    assert sweep[best] + 0.02 < row["experts_own_average"]
    assert best not in ("0.0", "1.0")
    # Chosen on validation, it holds on the reported split.
    assert row["simple_average"]["average"] + 0.02 < sweep[row["chosen_scaling_factor"]]
    assert sweep["1.0"] < row["base"]["average"] - 0.1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", text.TASKS)
def test_expert_is_a_specialist_well_above_base_and_majority(seed: str, task: str) -> None:
    row = SEEDS[seed]
    own, before = row["experts"][task][task], row["base"][task]
    errors = row["standard_errors"]
    assert own - before > 3 * math.hypot(errors["own_experts"][task], errors["base"][task])
    if task != "stsb":
        counts = Counter(example["label"] for example in text.load(task, "test"))
        majority = max(counts.values()) / counts.total()
        assert own - majority > 3 * math.sqrt(majority * (1 - majority) / counts.total())
    assert all(row["experts"][task][another] < own for another in text.TASKS if another != task)
    assert all(row["experts"][another][task] < own for another in text.TASKS if another != task)
