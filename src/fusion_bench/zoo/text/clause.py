"""One event, told in several ways: active, fronted or passive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from .lexicon import COLOURS, OBJECTS, PEOPLE, PLACES, TIMES, TRAITS, VERBS, Meaning

T = TypeVar("T")


def other(rng: Random, choices: Sequence[T], than: T) -> T:
    """A member of ``choices`` which is not ``than``."""
    while (choice := rng.choice(choices)) == than:
        pass
    return choice


@dataclass(frozen=True)
class Clause:
    """Who did what to which thing, perhaps where or when; words are picked when it is told."""

    person: str
    verb: Meaning
    object: Meaning
    place: str | None = None
    time: str | None = None
    trait: str | None = None
    colour: str | None = None
    verb_word: int = 0
    object_word: int = 0

    @property
    def done(self) -> str:
        return self.verb[self.verb_word % len(self.verb)]

    @property
    def subject(self) -> str:
        return _phrase("the", self.trait, self.person)

    @property
    def thing(self) -> str:
        return _phrase("the", self.colour, self.object[self.object_word % len(self.object)])

    @property
    def circumstances(self) -> str:
        place = f"in the {self.place}" if self.place else None
        return _phrase(place, f"at {self.time}" if self.time else None)

    def active(self) -> str:
        return _phrase(self.subject, self.done, self.thing, self.circumstances)

    def fronted(self) -> str:
        if not self.circumstances:
            return self.active()
        return f"{self.circumstances} , {self.subject} {self.done} {self.thing}"

    def passive(self) -> str:
        return _phrase(self.thing, "was", self.done, "by", self.subject, self.circumstances)

    def bare(self) -> Clause:
        """The event without modifiers: every clause entails its bare form."""
        return replace(self, place=None, time=None, trait=None, colour=None)

    def reworded(self, rng: Random) -> Clause:
        """The same event in synonyms where the lexicon has them."""
        if rng.random() < 0.5:
            return replace(self, verb_word=self.verb_word + 1)
        return replace(self, verb_word=self.verb_word + rng.randrange(2), object_word=self.object_word + 1)

    def changed(self, rng: Random, slot: str) -> Clause:
        """Another event, which differs in one slot."""
        choices: dict[str, Sequence[object]] = {
            "person": PEOPLE, "verb": VERBS, "object": OBJECTS, "place": PLACES, "time": TIMES,
        }  # fmt: skip
        return replace(self, **{slot: other(rng, choices[slot], getattr(self, slot))})


def draw(rng: Random, *, place: float = 0.0, time: float = 0.0, trait: float = 0.0, colour: float = 0.0) -> Clause:
    """A random event; each keyword is the probability that the modifier is there."""
    return Clause(
        person=rng.choice(PEOPLE),
        verb=rng.choice(VERBS),
        object=rng.choice(OBJECTS),
        place=rng.choice(PLACES) if rng.random() < place else None,
        time=rng.choice(TIMES) if rng.random() < time else None,
        trait=rng.choice(TRAITS) if rng.random() < trait else None,
        colour=rng.choice(COLOURS) if rng.random() < colour else None,
        verb_word=rng.randrange(2),
        object_word=rng.randrange(2),
    )


def _phrase(*parts: str | None) -> str:
    return " ".join(part for part in parts if part)
