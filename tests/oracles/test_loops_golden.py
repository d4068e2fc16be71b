"""The oracle itself against numbers that were worked out from the definitions: golden vectors G1, G9 and G20."""

from __future__ import annotations

from typing import Any

import loops
import numpy as np
import pytest

R = [
    [0.9, -0.1, 0.3, -0.7, 0.05, 0.2, -0.4, 0.6, -0.8, 0.01],
    [-0.2, 0.8, 0.4, -0.6, -0.03, -0.9, 0.1, 0.5, 0.7, -0.02],
    [0.5, -0.3, -0.9, 0.1, 0.04, 0.25, 0.35, -0.65, 0.15, 0.55],
]


def stored(row: list[float]) -> dict[str, np.ndarray]:
    """One vector as two tensors whose names sort in the order of the entries."""
    whole = np.array(row, dtype=np.float64)
    return {"b.second": whole[4:], "a.first": whole[:4].reshape(2, 2)} if len(row) == 10 else {"a.first": whole}


def vector(model: dict[str, np.ndarray]) -> list[float]:
    return [float(entry) for name in sorted(model) for entry in model[name].reshape(-1)]


def merge(rows: list[list[float]], **fields: Any) -> list[float]:
    base = stored([0.0] * len(rows[0]))
    return vector(loops.ties([stored(row) for row in rows], base, scaling_factor=1.0, **fields))


FEW_EXACT = [0.9, 0.8, -0.9, 0, 0, -0.9, 0, -0.65, -0.8, 0]
THREE_EACH = [0.9, 0.8, -0.9, -0.7, 0, -0.9, 0, -0.65, -0.8, 0.55]
FOUR_MEAN = [0.7, 0.8, -0.9, -0.65, 0, -0.9, 0, -0.65, -0.8, 0.55]
FOUR_SUM = [1.4, 0.8, -0.9, -1.3, 0, -0.9, 0, -0.65, -0.8, 0.55]
HALF_MEAN = [0.7, 0.8, -0.9, -0.65, 0, -0.9, -0.4, 0.55, -0.8, 0.55]
HALF_SUM = [1.4, 0.8, -0.9, -1.3, 0, -0.9, -0.4, 1.1, -0.8, 0.55]
HALF_MAX = [0.9, 0.8, -0.9, -0.7, 0, -0.9, -0.4, 0.6, -0.8, 0.55]
ALL_MEAN = [0.7, 0.8, -0.9, -0.65, 0.045, -0.9, 0.225, 0.55, 0.425, 0.28]
ALL_SUM = [1.4, 0.8, -0.9, -1.3, 0.09, -0.9, 0.45, 1.1, 0.85, 0.56]

G1 = [
    (0.2, "authors", "mean", THREE_EACH),
    (0.2, "authors", "sum", THREE_EACH),
    (0.2, "exact", "mean", FEW_EXACT),
    (0.2, "exact", "sum", FEW_EXACT),
    (0.3, "authors", "mean", FOUR_MEAN),
    (0.3, "authors", "sum", FOUR_SUM),
    (0.3, "exact", "mean", THREE_EACH),
    (0.3, "exact", "sum", THREE_EACH),
    (0.5, "authors", "mean", HALF_MEAN),
    (0.5, "exact", "mean", HALF_MEAN),
    (0.5, "exact", "sum", HALF_SUM),
    (0.5, "authors", "sum", HALF_SUM),
    (0.5, "exact", "max", HALF_MAX),
    (0.5, "authors", "max", HALF_MAX),
    (1.0, "exact", "mean", ALL_MEAN),
    (1.0, "authors", "mean", ALL_MEAN),
    (1.0, "exact", "sum", ALL_SUM),
    (1.0, "authors", "sum", ALL_SUM),
]


@pytest.mark.parametrize(("density", "count", "merge_func", "expected"), G1)
def test_unweighted(density: float, count: str, merge_func: str, expected: list[float]) -> None:
    assert merge(R, density=density, count=count, merge_func=merge_func) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("rule", "expected"), [("none", [0, 0]), ("positive", [1, 1]), ("majority", [-1, -1])])
def test_totals_of_zero(rule: str, expected: list[float]) -> None:
    assert merge([[1, -1], [-1, 1]], density=1.0, zero_sum=rule) == pytest.approx(expected, abs=0)


def test_three_packages_three_answers() -> None:
    """G9: weights (1, .5, 2), density .5, one flat tensor."""
    models = [{"w": np.array(row)} for row in R]
    base = {"w": np.zeros(10)}
    fields: dict[str, Any] = {"scaling_factor": 1.0, "density": 0.5, "weights": [1.0, 0.5, 2.0]}
    mergekit = [0.633333, 0.8, -0.9, -0.666667, 0, -0.9, 0.35, -0.65, -0.8, 0.55]
    peft = [0.95, 0.4, -1.8, -0.5, 0, -0.45, -0.4, 0.425, -0.8, 1.1]
    ours = [0.633333, 0.8, -0.9, -0.666667, 0, -0.9, -0.4, 0.566667, -0.8, 0.55]
    assert vector(loops.ties_mergekit(models, base, **fields)) == pytest.approx(mergekit, abs=1e-6)
    assert vector(loops.ties_peft(models, base, **fields)) == pytest.approx(peft, abs=1e-6)
    assert vector(loops.ties(models, base, merge_func="mean", **fields)) == pytest.approx(ours, abs=1e-6)


def test_a_preset_is_a_choice_of_switches() -> None:
    """The separate tellings of the two packages agree with the switches that they are made of."""
    models = [{"w": np.array(row)} for row in R]
    base = {"w": np.zeros(10)}
    fields: dict[str, Any] = {"scaling_factor": 0.7, "density": 0.5, "weights": [1.0, 0.5, 2.0]}
    common: dict[str, Any] = {"merge_func": "mean", "scope": "tensor", "zero_sum": "positive"}
    by_switches = loops.ties(models, base, sign_weights="weighted", normalize_by="weights", **common, **fields)
    assert vector(loops.ties_mergekit(models, base, **fields)) == pytest.approx(vector(by_switches), abs=1e-15)
    by_switches = loops.ties(models, base, sign_weights="unweighted", normalize_by="count", **common, **fields)
    assert vector(loops.ties_peft(models, base, **fields)) == pytest.approx(vector(by_switches), abs=1e-15)


def test_low_rank_products() -> None:
    """G20: the exact weighted sum of two adapters of rank 1."""
    first = loops.lora_delta(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0, 2.0]]), alpha=2.0, rank=1)
    second = loops.lora_delta(np.array([[2.0], [1.0]]), np.array([[0.0, 1.0, 1.0]]), alpha=0.5, rank=1)
    assert (0.5 * first + second).tolist() == [[1, 1, 3], [0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("values", "density", "count", "expected"),
    [
        ([3, -3, 3, 1], 0.5, "exact", [1, 1, 0, 0]),
        ([1, 3, -3, 3], 0.5, "exact", [0, 1, 1, 0]),
        ([3, -3, 3, 1], 0.5, "authors", [1, 1, 1, 0]),
        ([4, 3, 2, 1], 0.5, "authors", [1, 1, 1, 0]),
        ([4, 3, 2, 1], 0.0, "exact", [0, 0, 0, 0]),
        ([4, 3, 2, 1], 0.0, "authors", [1, 0, 0, 0]),
        ([4, 0, 0, 0], 0.5, "authors", [1, 1, 1, 1]),
        ([4, 3, 2, 1], 1.0, "authors", [1, 1, 1, 1]),
    ],
)
def test_kept_entries(values: list[float], density: float, count: str, expected: list[int]) -> None:
    assert [int(keep) for keep in loops.kept(values, density, count)] == expected


def test_a_float_that_is_a_hair_too_small() -> None:
    """int(0.29·100) is 28, as in PEFT and mergekit."""
    assert sum(loops.kept([float(j + 1) for j in range(100)], 0.29)) == 28


def test_averages() -> None:
    models = [{"w": np.array([1.0, 2.0])}, {"w": np.array([3.0, -4.0])}]
    assert loops.mean(models)["w"].tolist() == [2.0, -1.0]
    assert loops.weighted_mean(models, [3.0, 1.0], normalize=True)["w"].tolist() == [1.5, 0.5]
    assert loops.weighted_mean(models, [3.0, -1.0], normalize=False)["w"].tolist() == [0.0, 10.0]
    base = {"w": np.array([1.0, 1.0])}
    assert loops.task_arithmetic(models, base, 0.5)["w"].tolist() == [2.0, -1.0]
