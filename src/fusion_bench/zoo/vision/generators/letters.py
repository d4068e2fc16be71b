"""Capital letters in several hands: bold, thin, slanted, double, in chalk beside stray lines."""

from __future__ import annotations

import numpy as np

from ..canvas import GRID, Array, cover, paint, placed, plain, strokes
from ..glyphs import LETTERS
from .draft import CATALOGUE, Generator, Palette, inks, weathered

CLASSES = tuple(LETTERS)
_CHALK = Palette(((0.0, 0.15, 0.1), (0.25, 0.4, 0.3)), ((0.7, 0.7, 0.6), (1.0, 1.0, 1.0)))


def draw(rng: np.random.RandomState, label: int, field: bool) -> Array:
    """One letter; in the field slanted, turned, of any width, beside stray lines."""
    ground, ink = inks(rng, _CHALK if field else CATALOGUE)
    image = plain(ground)
    if field:
        for _ in range(1):
            ends = rng.uniform(-1.2, 1.2, size=(2, 2))
            stray = strokes(GRID, [[(ends[0, 0], ends[0, 1]), (ends[1, 0], ends[1, 1])]]) - 0.03
            image = paint(image, 0.6 * cover(stray), ink)
    at = placed(rng, 0.12, 0.15, 0.6, 0.8) if field else placed(rng, 0.08, 0.04, 0.7, 0.8)
    slant = rng.uniform(-0.3, 0.3) if field else rng.uniform(-0.05, 0.05)
    width = rng.uniform(0.1, 0.28) if field else rng.uniform(0.12, 0.2)
    distance = strokes((at[0] - slant * at[1], at[1]), LETTERS[CLASSES[label]])
    if field and rng.uniform() < 0.3:
        distance = np.abs(distance - width) + 0.5 * width
    return weathered(rng, paint(image, cover(distance - width, 0.65), ink), field)


GENERATOR = Generator(CLASSES, ("a photo of the letter {c}.", "the capital letter {c}."), draw)
