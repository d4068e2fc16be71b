"""Graded similarity of two reports, counted slot by slot."""

from __future__ import annotations

from random import Random

from ..clause import draw
from .draft import Draft

SLOTS = ("person", "verb", "object", "place")


def draft(rng: Random) -> Draft:
    first = draw(rng, place=1.0)
    changed = set(rng.sample(SLOTS, rng.choice((0, 1, 1, 2, 2, 3, 3, 4))))
    second = first
    for slot in sorted(changed):
        second = second.changed(rng, slot)
    if not changed or rng.random() < 0.3:
        second = second.reworded(rng)
    synonyms = sum(
        slot not in changed
        and getattr(first, f"{slot}_word") != getattr(second, f"{slot}_word")
        and len(getattr(first, slot)) > 1
        for slot in ("verb", "object")
    )
    same_place = "place" not in changed
    equal = len(SLOTS) - len(changed)
    label = round(0.2 + 1.2 * equal - 0.2 * synonyms, 1)
    contrary = round((3.6 if same_place else 0.2) + 0.4 * (equal - same_place) - 0.2 * synonyms, 1)
    contrary = max(contrary, 0.0)
    gap = contrary - label
    kind = "place_alone" if gap > 1 else "rest_alone" if gap < -1 else "plain"
    return Draft({"sentence1": first.active(), "sentence2": second.active()}, label, contrary, kind)
