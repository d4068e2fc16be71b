"""Acceptability of single sentences: word order, agreement, unusual but correct constructions."""

from __future__ import annotations

from random import Random

from ..clause import draw
from ..lexicon import PEOPLE, PLACES, TRAITS
from .draft import Draft

UNACCEPTABLE, ACCEPTABLE = 0, 1


def draft(rng: Random) -> Draft:
    kind = rng.choices(("plain", "agreeing", "cleft", "scrambled", "disagreeing"), (20, 16, 14, 30, 20))[0]
    if kind == "plain":
        return _done(draw(rng, place=0.6, trait=0.4, colour=0.4).active(), ACCEPTABLE, kind)
    if kind == "cleft":
        return _done(_cleft(rng), ACCEPTABLE, kind)
    if kind == "scrambled":
        return _done(_scrambled(rng), UNACCEPTABLE, kind)
    return _done(_copula(rng, agreeing=kind == "agreeing"), int(kind == "agreeing"), kind)


def _done(sentence: str, label: int, kind: str) -> Draft:
    return Draft({"sentence": sentence}, label, 1 - label, kind)


def _copula(rng: Random, agreeing: bool) -> str:
    """Number of the subject against number of the verb, with a noun of either number between them."""
    plural = rng.random() < 0.5
    subject = rng.choice(PEOPLE) + "s" * plural
    between = rng.choice((f"in the {rng.choice(PLACES)} ", f"near the {rng.choice(PEOPLE)} ", ""))
    verb = rng.choice((("is", "are"), ("was", "were")))[plural == agreeing]
    return f"the {subject} {between}{verb} {rng.choice(('very ', 'quite ', ''))}{rng.choice(TRAITS)}"


def _cleft(rng: Random) -> str:
    clause = draw(rng, place=0.3, trait=0.3, colour=0.3)
    if rng.random() < 0.5:
        return f"it was {clause.subject} who {clause.done} {clause.thing}"
    return f"what {clause.subject} {clause.done} was {clause.thing}"


def _scrambled(rng: Random) -> str:
    clause = draw(rng, place=0.4, trait=0.3, colour=0.3)
    words = clause.active().split()
    verb = words.index(clause.done)
    damage = rng.randrange(4)
    if damage == 0:
        words[0], words[1] = words[1], words[0]
    elif damage == 1:
        words[verb], words[verb + 1] = words[verb + 1], words[verb]
    elif damage == 2:
        words.insert(verb, "the")
    else:
        del words[verb]
    return " ".join(words)
