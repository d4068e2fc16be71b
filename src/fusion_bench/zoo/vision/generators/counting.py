"""How many things are there: one to six, apart from one another."""

from __future__ import annotations

import numpy as np

from ..canvas import Array, Places, Point, box, cover, disc, frame, paint, plain, polygon, regular
from .draft import CATALOGUE, Generator, Palette, inks, weathered

CLASSES = ("one", "two", "three", "four", "five", "six")
_BERRIES = Palette(((0.1, 0.45, 0.1), (0.45, 0.85, 0.35)), ((0.5, 0.0, 0.0), (0.9, 0.15, 0.3)))


def _places(rng: np.random.RandomState, count: int, gap: float) -> list[Point]:
    # Drawn anew as a whole: filling up a bad start can be impossible.
    while True:
        points: list[Point] = []
        for _ in range(40):
            x, y = rng.uniform(-0.76, 0.76, size=2)
            if all((x - a) ** 2 + (y - b) ** 2 > gap * gap for a, b in points):
                points.append((float(x), float(y)))
                if len(points) == count:
                    return points


def _thing(at: Places, kind: int, size: float) -> Array:
    if kind == 0:
        return disc(at, size)
    return box(at, size, size) if kind == 1 else polygon(at, regular(3, 1.3 * size))


def draw(rng: np.random.RandomState, label: int, field: bool) -> Array:
    """Discs alone in the catalogue; in the field discs, squares or triangles of different sizes."""
    ground, ink = inks(rng, _BERRIES if field else CATALOGUE)
    image = plain(ground)
    kind = rng.randint(3) if field else 0
    for place in _places(rng, label + 1, 0.56 if field else 0.6):
        size = rng.uniform(0.15, 0.21) if field else 0.2
        at = frame(place, rng.uniform(0, np.pi))
        image = paint(image, cover(_thing(at, kind, size)), ink)
    return weathered(rng, image, field)


GENERATOR = Generator(CLASSES, ("a photo of {c} objects.", "there are {c} things."), draw)
