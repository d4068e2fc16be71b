"""Which way a thing points: eight directions of the compass."""

from __future__ import annotations

import numpy as np

from ..canvas import Array, cover, disc, frame, paint, plain, polygon, strokes
from .draft import CATALOGUE, Generator, Palette, inks, weathered

CLASSES = ("north", "northwest", "west", "southwest", "south", "southeast", "east", "northeast")
_ROAD = Palette(((0.25, 0.25, 0.28), (0.42, 0.42, 0.45)), ((0.8, 0.75, 0.2), (1.0, 1.0, 1.0)))
_ARROW = [[(0.0, -0.85), (0.0, 0.75)], [(-0.5, 0.25), (0.0, 0.85), (0.5, 0.25)]]
_DART = [(0.0, 1.0), (0.6, -0.8), (0.0, -0.4), (-0.6, -0.8)]


def draw(rng: np.random.RandomState, label: int, field: bool) -> Array:
    """Arrows in the catalogue; in the field arrows, darts or a ball on a stick, up to ten degrees off."""
    ground, ink = inks(rng, _ROAD if field else CATALOGUE)
    turn = label * np.pi / 4 + (rng.uniform(-0.17, 0.17) if field else rng.uniform(-0.03, 0.03))
    centre = tuple(rng.uniform(-0.15, 0.15, size=2)) if field else (0.0, 0.0)
    scale = rng.uniform(0.6, 0.8) if field else rng.uniform(0.75, 0.85)
    at = frame((float(centre[0]), float(centre[1])), turn, scale)
    kind = rng.randint(3) if field else 0
    if kind == 0:
        distance = strokes(at, _ARROW) - 0.14
    elif kind == 1:
        distance = polygon(at, _DART)
    else:
        distance = np.minimum(strokes(at, [[(0.0, -0.9), (0.0, 0.5)]]) - 0.1, disc(at, 0.38, (0.0, 0.55)))
    return weathered(rng, paint(plain(ground), cover(distance, scale), ink), field)


GENERATOR = Generator(CLASSES, ("a photo of a thing pointing {c}.", "it points to the {c}."), draw)
