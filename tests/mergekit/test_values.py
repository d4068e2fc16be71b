"""Values of parameters: scalars, gradients, filters, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from fusion_bench.errors import ConfigError
from fusion_bench.mergekit.values import Kind, read_value

THIRDS = [0, 1 / 3, 2 / 3, 1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.5, [0.5] * 4),
        ("0.5", [0.5] * 4),
        ("1e-1", [0.1] * 4),
        ([0, 1], THIRDS),
        ([0, 1, 0.5], [0, 2 / 3, 5 / 6, 0.5]),
        ([0, 0.1, 0.5, 0.6, 1], [0, 0.1 + 0.4 / 3, 0.5 + 0.2 / 3, 1]),
        ([0, 1, 2, 3, 4, 5, 6, 7], [0, 7 / 3, 14 / 3, 7]),
        ([0.3], [0.3] * 4),
    ],
)
def test_numbers_over_four_layers(given: Any, expected: list[float]) -> None:
    value = read_value(given, "number", "weight")
    assert value is not None
    assert [value.at("x", depth) for depth in THIRDS] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (True, [True] * 4),
        ("false", [False] * 4),
        (0, [False] * 4),
        ([True, False, True], [True, True, False, True]),
        ([False, True], [False, False, False, True]),
    ],
)
def test_truths_are_not_interpolated(given: Any, expected: list[bool]) -> None:
    value = read_value(given, "truth", "normalize")
    assert value is not None
    assert [value.at("x", depth) for depth in THIRDS] == expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([{"filter": "self_attn", "value": 0.1}, {"filter": "q_proj", "value": 0.9}, {"value": 0.5}], 0.1),
        ([{"filter": "q_proj", "value": 0.9}, {"filter": "self_attn", "value": 0.1}], 0.9),
        ([{"value": 0.5}, {"filter": "self_attn", "value": 0.1}], 0.5),
        ([{"filter": "SELF_ATTN", "value": 0.1}, {"filter": "q_pro.$", "value": 0.2}], None),
        ([{"filter": "*.self_attn.*", "value": 0.1}], None),
        ([{"filter": "*", "value": 0.1}], 0.1),
        ([{"filter": "", "value": 0.1}], 0.1),
        ([{"filter": None, "value": 0.1}], 0.1),
        ({"filter": "layers.2.", "value": [0, 3]}, 2.0),
    ],
)
def test_filters(rules: Any, expected: float | None) -> None:
    value = read_value(rules, "number", "weight")
    assert value is not None
    assert value.at("model.layers.2.self_attn.q_proj.weight", 2 / 3) == pytest.approx(expected)


def test_an_empty_list_is_not_given() -> None:
    assert read_value([], "number", "weight") is None


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (None, "number", "weight=null: expected a finite number"),
        ("half", "number", "weight=half: expected a finite number"),
        (float("nan"), "number", "expected a finite number"),
        (True, "number", "weight=True"),
        (1.5, "count", "whole number"),
        ("yes", "truth", "weight=yes: expected true or false"),
        ([0.1, {"filter": "mlp", "value": 1}], "number", "values and filters in one list"),
        ([0.1, "x"], "number", "weight[1]=x"),
        ([{"filter": "mlp", "valeu": 1}], "number", "Did you mean 'value'?"),
        ([{"filter": "mlp"}], "number", "weight[0]: value is missing"),
        ([{"filter": "mlp", "value": []}], "number", "weight[0].value: an empty list"),
        ([{"filter": ["mlp"], "value": 1}], "number", "weight[0].filter"),
    ],
)
def test_mistakes(given: Any, kind: Kind, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_value(given, kind, "weight")
    assert words in str(caught.value)
