"""Paraphrase or not: two reports of an event, in another form or with another content."""

from __future__ import annotations

from random import Random

from ..clause import draw
from .draft import Draft

NO, YES = 0, 1


def draft(rng: Random) -> Draft:
    kind = rng.choices(("reworded", "passive", "core", "passive_core", "circumstance"), (32, 18, 26, 6, 18))[0]
    first = draw(rng, place=1.0, time=0.3)
    if kind == "reworded":
        second, label = first.reworded(rng), YES
    elif kind == "passive":
        second, label = first, YES
    elif kind == "circumstance":
        second, label = first.changed(rng, "place"), NO
    else:
        second, label = first.changed(rng, rng.choice(("person", "verb", "object"))), NO
    if kind.startswith("passive"):
        told = second.passive()
    else:
        told = second.fronted() if rng.random() < 0.3 else second.active()
    return Draft({"sentence1": first.active(), "sentence2": told}, label, 1 - label, kind)
