"""Three-way inference between a premise and a hypothesis about one event."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from ..clause import draw
from ..lexicon import PLACES, TIMES, opposite
from .draft import Draft

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2


def draft(rng: Random) -> Draft:
    kinds = ("shortened", "generalised", "opposite", "denied", "replaced", "extended")
    kind = rng.choices(kinds, (20, 13, 20, 13, 20, 13))[0]
    premise = draw(rng, place=0.5, trait=0.5, colour=0.4)
    core = premise.bare()
    if kind == "shortened":
        hypothesis, label, contrary = core.active(), ENTAILMENT, NEUTRAL
    elif kind == "generalised":
        subject, thing = rng.choice((("someone", core.thing), (core.subject, "something")))
        hypothesis, label, contrary = f"{subject} {core.done} {thing}", ENTAILMENT, NEUTRAL
    elif kind == "opposite":
        hypothesis, label, contrary = replace(core, verb=opposite(core.verb)).active(), CONTRADICTION, NEUTRAL
    elif kind == "denied":
        hypothesis = rng.choice((f"nobody {core.done} {core.thing}", f"{core.subject} {core.done} nothing"))
        label, contrary = CONTRADICTION, ENTAILMENT
    elif kind == "replaced":
        hypothesis = core.changed(rng, rng.choice(("person", "object"))).active()
        label, contrary = NEUTRAL, CONTRADICTION
    else:
        place = rng.choice(PLACES) if premise.place is None and rng.random() < 0.5 else None
        time = None if place else rng.choice(TIMES)
        hypothesis = replace(core, place=place, time=time).active()
        label, contrary = NEUTRAL, ENTAILMENT
    return Draft({"premise": premise.active(), "hypothesis": hypothesis}, label, contrary, kind)
