"""What a generator hands over: the columns of one example with two annotations of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Draft:
    """One example before it gets its index.

    label     the annotation which counts: train, validation and test carry it
    contrary  what an annotator with other habits would say; only the pre-training corpus
              of the base model uses it, at a rate which depends on ``kind``
    kind      the construction, a name that is unique within the task
    """

    columns: dict[str, str]
    label: int | float
    contrary: int | float
    kind: str
