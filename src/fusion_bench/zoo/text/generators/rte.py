"""Two-way entailment under verbs which vouch for their complement, deny it or leave it open."""

from __future__ import annotations

from random import Random

from ..clause import Clause, draw, other
from ..lexicon import PEOPLE
from .draft import Draft

YES, NO = 0, 1
VOUCHED = ("it is true that", "it is clear that", "the {} saw that", "the {} learned that")
DENIED = ("it is false that", "it is wrong that", "the {} denied that", "the {} disproved that")
OPEN = ("the {} claimed that", "the {} hoped that", "the {} guessed that", "it is possible that")
PRESUPPOSED = ("the {} forgot that", "the {} did not know that", "the {} regretted that", "the {} ignored that")


def draft(rng: Random) -> Draft:
    kind = rng.choices(("stated", "vouched", "presupposed", "changed", "denied", "open"), (14, 18, 18, 20, 12, 18))[0]
    event = draw(rng, trait=0.4, colour=0.3, place=0.5)
    frames = {"vouched": VOUCHED, "denied": DENIED, "open": OPEN, "presupposed": PRESUPPOSED}.get(kind)
    if kind == "changed":
        frames = rng.choice((None, VOUCHED, OPEN, PRESUPPOSED))
    said = event.changed(rng, rng.choice(("person", "verb", "object"))) if kind == "changed" else event
    label = YES if kind in ("stated", "vouched", "presupposed") else NO
    text = _embedded(rng, event, frames)
    return Draft({"sentence1": text, "sentence2": said.bare().active()}, label, 1 - label, kind)


def _embedded(rng: Random, event: Clause, frames: tuple[str, ...] | None) -> str:
    if frames is None:
        return event.active()
    return f"{rng.choice(frames).format(other(rng, PEOPLE, event.person))} {event.active()}"
