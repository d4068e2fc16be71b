"""Scores of generated answers with their uncertainty."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Unparseable = Literal["zero", "whole"]
# ASCII digits only: float() also takes "nan", "inf", "1_000", "1e3" and digits of other scripts.
_DECIMAL: Final = re.compile(r" *[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+) *")


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Share of answers equal to their target, character by character.

    `stderr`: binomial, sqrt(a (1 - a) / n); `invalid`: answers outside the label set; `majority`: the score of always
    giving the most frequent target; `collapsed`: all answers fall into one class, invalid ones counting as one.
    """

    accuracy: float
    n: int
    stderr: float
    invalid: int
    invalid_rate: float
    majority: float
    collapsed: bool


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's rho of the numbers read from the answers with the gold numbers.

    `stderr`: see `spearman_stderr`; None where rho is undefined or n is below 4. `invalid`: answers that are no plain
    decimal number; `constant`: all numbers are equal, which leaves rho undefined; it is then reported as 0.0.
    """

    spearman_rho: float
    n: int
    stderr: float | None
    invalid: int
    invalid_rate: float
    constant: bool


def exact_match(outputs: Sequence[str], targets: Sequence[str], labels: Collection[str]) -> ExactMatch:
    """Scores answers against targets. `labels`: every text that is a valid answer. Needs at least one example."""
    n = _count(outputs, targets)
    accuracy = sum(output == target for output, target in zip(outputs, targets, strict=True)) / n
    valid = set(labels)
    invalid = sum(output not in valid for output in outputs)
    classes = {output if output in valid else None for output in outputs}
    return ExactMatch(
        accuracy=accuracy,
        n=n,
        stderr=math.sqrt(accuracy * (1 - accuracy) / n),
        invalid=invalid,
        invalid_rate=invalid / n,
        majority=max(Counter(targets).values()) / n,
        collapsed=n > 1 and len(classes) == 1,
    )


def rank_correlation(
    outputs: Sequence[str], targets: Sequence[str], unparseable: Unparseable = "zero"
) -> RankCorrelation:
    """Scores numbers written as text. Gold numbers are read from the target texts, so they are rounded as those are.

    `unparseable`: an answer that is no number counts as 0.0 (``zero``), or makes rho 0.0 (``whole``, the paper's rule).
    Needs at least one example.
    """
    n = _count(outputs, targets)
    read = [decimal(output) for output in outputs]
    gold = [decimal(target) or 0.0 for target in targets]
    invalid = sum(value is None for value in read)
    numbers = [0.0 if value is None else value for value in read]
    rho = spearman(numbers, gold)
    if unparseable == "whole" and invalid:
        rho = None
    return RankCorrelation(
        spearman_rho=rho or 0.0,
        n=n,
        stderr=None if rho is None else spearman_stderr(rho, n),
        invalid=invalid,
        invalid_rate=invalid / n,
        constant=len(set(numbers)) == 1,
    )


def decimal(text: str) -> float | None:
    """The number that `text` writes as a plain decimal, such as ``3.8``; None when it does not."""
    if not _DECIMAL.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks, ties ranked by their average; None where one side is constant."""
    a, b = ranks(left), ranks(right)
    # Twice the average rank is an integer, so the sums are exact and rho does not depend on the order of the items.
    n = len(a)
    mean = n + 1
    x, y = [2 * v - mean for v in a], [2 * v - mean for v in b]
    xx, yy = sum(v * v for v in x), sum(v * v for v in y)
    if not xx or not yy:
        return None
    return max(-1.0, min(1.0, sum(p * q for p, q in zip(x, y, strict=True)) / math.sqrt(xx * yy)))


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, equal values sharing the average of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for place in order[start:stop]:
            found[place] = (start + 1 + stop) / 2
        start = stop
    return found


def spearman_stderr(rho: float, n: int) -> float | None:
    """(1 - rho^2) sqrt((1 + rho^2 / 2) / (n - 3)); None below 4 items.

    The variance of Fisher's z for ranks after Bonett and Wright (Psychometrika 65, 2000), carried over to rho itself by
    its slope 1 - rho^2.
    """
    return (1 - rho * rho) * math.sqrt((1 + rho * rho / 2) / (n - 3)) if n > 3 else None


def _count(outputs: Sequence[str], targets: Sequence[str]) -> int:
    if len(outputs) != len(targets) or not outputs:
        raise ValueError(f"{len(outputs)} outputs for {len(targets)} targets")
    return len(outputs)
