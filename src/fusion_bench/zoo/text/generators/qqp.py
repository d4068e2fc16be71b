"""Whether two requests for advice have the same intent."""

from __future__ import annotations

from random import Random

from ..clause import other
from ..lexicon import ADVICE_VERBS, COLOURS, OBJECTS, Meaning
from .draft import Draft

NO, YES = 0, 1
FRAMES = (
    ("how can i {}", "what is the best way to {}"),
    ("where can i {}", "what is the best place to {}"),
    ("why should i {}", "what is the reason to {}"),
    ("when should i {}", "what is the right time to {}"),
)
OWNERS = ("the", "my", "this")


def draft(rng: Random) -> Draft:
    kind = rng.choices(("reworded", "reframed", "other_thing", "other_deed", "other_frame"), (32, 18, 20, 12, 18))[0]
    frame, form = rng.randrange(len(FRAMES)), rng.randrange(2)
    deed, thing, colour = rng.choice(ADVICE_VERBS), rng.choice(OBJECTS), rng.choice((None, None, *COLOURS))
    first = _ask(rng, FRAMES[frame][form], deed, thing, colour)
    if kind == "reframed":
        form = 1 - form
    elif kind == "other_frame":
        frame = other(rng, range(len(FRAMES)), frame)
    elif kind == "other_thing":
        thing = other(rng, OBJECTS, thing)
    elif kind == "other_deed":
        deed = other(rng, ADVICE_VERBS, deed)
    second = first
    while second == first:
        second = _ask(rng, FRAMES[frame][form], deed, thing, colour)
    label = YES if kind in ("reworded", "reframed") else NO
    return Draft({"question1": first, "question2": second}, label, 1 - label, kind)


def _ask(rng: Random, frame: str, deed: Meaning, thing: Meaning, colour: str | None) -> str:
    colour = f"{colour} " if colour else ""
    return frame.format(f"{rng.choice(deed)} {rng.choice(OWNERS)} {colour}{rng.choice(thing)}") + " ?"
