"""Filled plane figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..canvas import Array, Places, box, cover, disc, paint, placed, plain, polygon, regular
from .draft import ANY, CATALOGUE, Generator, inks, weathered

_HEART = [(0.0, -0.95), (0.95, 0.15), (0.85, 0.7), (0.45, 0.85), (0.0, 0.45)]
_ARROW = [(-0.25, -1.0), (0.25, -1.0), (0.25, 0.0), (0.75, 0.0), (0.0, 1.0), (-0.75, 0.0), (-0.25, 0.0)]


def _mirrored(right: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return right + [(-x, y) for x, y in reversed(right[1:-1])]


_FIGURES: dict[str, Callable[[Places], Array]] = {
    "circle": lambda at: disc(at, 0.85),
    "triangle": lambda at: polygon(at, regular(3)),
    "square": lambda at: box(at, 0.72, 0.72),
    "diamond": lambda at: polygon(at, [(0, 1), (0.6, 0), (0, -1), (-0.6, 0)]),
    "arrow": lambda at: polygon(at, _ARROW),
    "star": lambda at: polygon(at, regular(5, 1.0, 0.42)),
    "cross": lambda at: np.minimum(box(at, 0.28, 0.9), box(at, 0.9, 0.28)),
    "ring": lambda at: np.abs(disc(at, 0.68)) - 0.2,
    "crescent": lambda at: np.maximum(disc(at, 0.9), -disc(at, 0.75, (0.4, 0.15))),
    "heart": lambda at: polygon(at, _mirrored(_HEART)),
    "bar": lambda at: box(at, 0.3, 0.95),
    "frame": lambda at: np.abs(box(at, 0.6, 0.6)) - 0.17,
}
CLASSES = tuple(_FIGURES)


def draw(rng: np.random.RandomState, label: int, field: bool) -> Array:
    """One figure; in the field smaller, turned, off the centre."""
    ground, ink = inks(rng, ANY if field else CATALOGUE)
    size = (0.55, 0.8) if field else (0.7, 0.8)
    at = placed(rng, 0.15, 0.3, *size) if field else placed(rng, 0.05, 0.05, *size)
    image = paint(plain(ground), cover(_FIGURES[CLASSES[label]](at), sum(size) / 2), ink)
    return weathered(rng, image, field)


GENERATOR = Generator(CLASSES, ("a drawing of a {c}.", "a photo of a {c} shape."), draw)
