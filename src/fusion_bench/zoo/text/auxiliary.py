"""An auxiliary task of the base model's corpus: list the words which only the first text has.

Its answers are several words long and need every word compared with the other text. That teaches
the comparison which the eight tasks ask for with a single word of feedback per example.
"""

from __future__ import annotations

from random import Random

from .clause import draw

TEMPLATE = "List the words of '{first}' that are not in '{second}'."
NOTHING = "none"


def example(rng: Random) -> tuple[str, str]:
    """Prompt and target; one to three slots of a short event are changed."""
    first = draw(rng, place=0.5, time=0.1, trait=0.1, colour=0.1)
    second = first
    slots = ["person", "verb", "object"] + ["place"] * bool(first.place) + ["time"] * bool(first.time)
    for slot in rng.sample(slots, rng.choice((0, 1, 1, 2, 3))):
        second = second.changed(rng, slot)
    texts = first.active(), rng.choice((second.active, second.fronted, second.passive))()
    missing = [word for word in texts[0].split() if word not in texts[1].split()]
    return TEMPLATE.format(first=texts[0], second=texts[1]), " ".join(missing[:6]) or NOTHING
