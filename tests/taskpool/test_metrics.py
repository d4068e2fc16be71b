"""Scores against NumPy, SciPy and values worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fusion_bench.taskpool.metrics import decimal, exact_match, rank_correlation, ranks, spearman, spearman_stderr

GOLD = ["1.0", "2.5", "3.0", "5.0"]


def test_an_answer_that_is_no_number_counts_as_zero_or_spoils_the_whole() -> None:
    outputs = ["1", "2", "abc", "4"]
    assert rank_correlation(outputs, GOLD).spearman_rho == pytest.approx(0.4, abs=1e-15)
    whole = rank_correlation(outputs, GOLD, "whole")
    assert (whole.spearman_rho, whole.invalid, whole.invalid_rate, whole.stderr) == (0.0, 1, 0.25, None)
    assert rank_correlation(["1", "2", "3", "4"], GOLD, "whole").spearman_rho == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [("3.8", 3.8), ("5", 5.0), ("-1.5", -1.5), ("+2", 2.0), (".5", 0.5), ("4.", 4.0), (" 3.0 ", 3.0), ("0", 0.0)],
)
def test_plain_decimals(text: str, value: float) -> None:
    assert decimal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "infinity",
        "1_0",
        "1e1",
        "0x1",
        "3,8",
        "3.8.",
        "3 . 8",
        ".",
        "-",
        "yes",
        "٣",
        "½",
        "9" * 400,
    ],
)
def test_everything_else_is_no_number(text: str) -> None:
    assert decimal(text) is None
    score = rank_correlation([text, "2", "3", "4"], GOLD)
    assert score.invalid == 1
    json.dumps(asdict(score), allow_nan=False)


@pytest.mark.parametrize("outputs", [["3.0"] * 4, ["abc"] * 4, ["nan", "", "0", "0.0"]])
def test_constant_predictions_are_zero_and_counted(outputs: list[str]) -> None:
    score = rank_correlation(outputs, GOLD)
    assert (score.spearman_rho, score.constant, score.stderr) == (0.0, True, None)
    json.dumps(asdict(score), allow_nan=False)


def test_gold_is_read_from_the_rounded_text() -> None:
    # Labels 2.96 and 3.04 are both written 3.0, a tie that the raw labels would break.
    assert rank_correlation(["1", "2", "3"], ["3.0", "3.0", "4.0"]).spearman_rho == pytest.approx(math.sqrt(3) / 2)


numbers = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5, 3.0, 4.1, 5.0]), min_size=2, max_size=40)


@given(numbers, st.randoms(use_true_random=False))
def test_spearman_is_scipys(left: list[float], rng: object) -> None:
    right = [x + float(rng.choice([0, 0, 1, 2.5])) for x in left]  # type: ignore[attr-defined]
    assert ranks(left) == list(stats.rankdata(left))
    rho = spearman(left, right)
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert rho is None
    else:
        assert rho == pytest.approx(stats.spearmanr(left, right).statistic, abs=1e-12)
        assert -1 <= rho <= 1
        assert spearman(left, left) == 1.0


def test_exact_match_is_exact() -> None:
    targets = ["yes", "no", "yes", "yes", "no"]
    score = exact_match(["yes", "no ", "Yes", "yes.", "no"], targets, ["yes", "no"])
    assert (score.accuracy, score.n, score.invalid, score.invalid_rate, score.majority) == (0.4, 5, 3, 0.6, 0.6)
    assert score.stderr == pytest.approx(math.sqrt(0.4 * 0.6 / 5))
    assert not score.collapsed


@pytest.mark.parametrize(
    ("outputs", "collapsed"),
    [(["yes"] * 4, True), (["a", "b", "c", ""], True), (["yes", "yes", "yes", "x"], False), (["yes", "no"] * 2, False)],
)
def test_collapse_is_flagged(outputs: list[str], collapsed: bool) -> None:
    assert exact_match(outputs, ["yes", "no", "no", "no"], ["yes", "no"]).collapsed is collapsed


def test_one_example() -> None:
    assert not exact_match(["yes"], ["yes"], ["yes", "no"]).collapsed
    score = rank_correlation(["3.0"], ["3.0"])
    assert (score.spearman_rho, score.stderr, score.n) == (0.0, None, 1)
    with pytest.raises(ValueError, match="0 outputs"):
        exact_match([], [], ["yes"])
    with pytest.raises(ValueError, match="1 outputs for 2 targets"):
        rank_correlation(["1"], ["1", "2"])


def test_the_standard_error_of_rho_is_about_what_samples_show() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        x = generator.normal(size=200)
        found.append(stats.spearmanr(x, 0.8 * x + 0.6 * generator.normal(size=200)).statistic)
    told = spearman_stderr(float(np.mean(found)), 200)
    assert told is not None
    assert np.std(found) == pytest.approx(told, rel=0.2)
    assert spearman_stderr(0.5, 3) is None
    assert spearman_stderr(1.0, 10) == 0.0
