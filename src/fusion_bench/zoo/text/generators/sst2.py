"""Sentiment of short reviews, with negation or a contrast between two clauses."""

from __future__ import annotations

from random import Random

from ..clause import other
from ..lexicon import NEGATIVE, POSITIVE, REVIEWED
from .draft import Draft

DEGREES = ("", "very ", "really ", "quite ", "rather ")


def draft(rng: Random) -> Draft:
    kind = rng.choices(("single", "joined", "negated", "contrast"), (20, 44, 18, 18))[0]
    label = rng.randrange(2)
    topic = rng.choice(REVIEWED)
    second = other(rng, REVIEWED, topic)
    if kind == "single":
        text = _judge(rng, topic, label)
    elif kind == "joined":
        text = f"{_judge(rng, topic, label)} and {_judge(rng, second, label)}"
    elif kind == "contrast":
        text = f"{_judge(rng, topic, 1 - label)} but {_judge(rng, second, label)}"
    else:
        text = _judge(rng, topic, 1 - label, rng.choice(("not ", "never ")))
        if rng.random() < 0.5:
            text += f" and {_judge(rng, second, 1 - label, 'not ')}"
    return Draft({"sentence": text}, label, 1 - label, kind)


def _judge(rng: Random, topic: str, label: int, negation: str = "") -> str:
    verb = rng.choice(("was", "seemed", "felt"))
    word = rng.choice(POSITIVE if label else NEGATIVE)
    return f"the {topic} {verb} {negation}{rng.choice(DEGREES)}{word}"
