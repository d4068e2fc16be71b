"""Whether a sentence answers a question about the event it reports."""

from __future__ import annotations

from random import Random

from ..clause import Clause, draw
from .draft import Draft

YES, NO = 0, 1


def draft(rng: Random) -> Draft:
    kind = rng.choices(("core", "where", "when", "absent", "other_verb", "other_object"), (20, 14, 16, 20, 12, 18))[0]
    wanted = {"where": "where", "when": "when"}.get(kind) or rng.choice(("where", "when"))
    event = draw(rng, trait=0.3, colour=0.2, place=0.5, time=0.5)
    if kind == "core":
        asked, wanted = event, rng.choice(("who", "what"))
    elif kind == "absent":
        event = draw(rng, trait=0.3, colour=0.2, place=0.7 * (wanted == "when"), time=0.7 * (wanted == "where"))
        asked = event
    else:
        event = draw(rng, trait=0.3, place=1.0 if wanted == "where" else 0.5, time=1.0 if wanted == "when" else 0.5)
        asked = event
        if kind.startswith("other"):
            asked = event.changed(rng, kind.removeprefix("other_"))
    label = YES if kind in ("core", "where", "when") else NO
    columns = {"question": _question(asked.bare(), wanted), "sentence": event.active()}
    return Draft(columns, label, 1 - label, kind)


def _question(asked: Clause, wanted: str) -> str:
    if wanted == "who":
        return f"who {asked.done} {asked.thing} ?"
    if wanted == "what":
        return f"what was {asked.done} by {asked.subject} ?"
    return f"{wanted} was {asked.thing} {asked.done} ?"
