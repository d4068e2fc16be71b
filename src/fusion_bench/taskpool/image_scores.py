"""The accuracy of predicted classes with its uncertainty."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of predictions equal to their label.

    `stderr`: binomial, sqrt(a (1 - a) / n); `majority`: the score of always giving the most frequent label;
    `most_common_share`: share of the most frequent prediction; `collapsed`: all predictions are one class, the labels
    are not.
    """

    accuracy: float
    n: int
    stderr: float
    majority: float
    most_common_share: float
    collapsed: bool


def accuracy(predictions: Sequence[int], labels: Sequence[int]) -> Accuracy:
    """Scores predictions against labels. Needs at least one example."""
    n = len(labels)
    if len(predictions) != n or not n:
        raise ValueError(f"{len(predictions)} predictions for {n} labels")
    share = sum(given == label for given, label in zip(predictions, labels, strict=True)) / n
    return Accuracy(
        accuracy=share,
        n=n,
        stderr=math.sqrt(share * (1 - share) / n),
        majority=max(Counter(labels).values()) / n,
        most_common_share=max(Counter(predictions).values()) / n,
        collapsed=len(set(predictions)) == 1 and len(set(labels)) > 1,
    )
