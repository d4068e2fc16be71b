"""Land seen from above."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..canvas import GRID, Array, Colour, box, cover, frame, grain, paint, placed, plain, smooth, strokes
from .draft import Generator, weathered

Land = Callable[[np.random.RandomState], Array]
GREEN, DARK, SOIL, WATER, ROAD, ROOF, SAND, STEEL, SNOW = (
    (0.4, 0.55, 0.25), (0.12, 0.3, 0.14), (0.5, 0.4, 0.25), (0.12, 0.25, 0.42), (0.45, 0.45, 0.47),
    (0.65, 0.35, 0.28), (0.8, 0.7, 0.5), (0.75, 0.75, 0.78), (0.92, 0.94, 0.97),
)  # fmt: skip


def _mottled(rng: np.random.RandomState, colour: Colour, depth: float, cells: int) -> Array:
    rough = smooth(rng, cells) - 0.5
    image: Array = plain(colour) + depth * rough[..., None]
    return image


def _forest(rng: np.random.RandomState) -> Array:
    return _mottled(rng, DARK, 0.35, 12)


def _pasture(rng: np.random.RandomState) -> Array:
    return _mottled(rng, GREEN, 0.12, 3)


def _lake(rng: np.random.RandomState) -> Array:
    return paint(_mottled(rng, GREEN, 0.15, 6), np.clip((smooth(rng, 2) - 0.3) * 8.0, 0.0, 1.0), WATER)


def _way(rng: np.random.RandomState, bend: float) -> Array:
    turn = rng.uniform(0, np.pi)
    x, y = frame((rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)), turn)
    distance: Array = np.abs(y + bend * np.sin(x * rng.uniform(2.0, 3.5) + rng.uniform(0, 6)))
    return distance


def _river(rng: np.random.RandomState) -> Array:
    return paint(_mottled(rng, GREEN, 0.2, 6), cover(_way(rng, 0.35) - rng.uniform(0.12, 0.25)), WATER)


def _highway(rng: np.random.RandomState) -> Array:
    image = _mottled(rng, GREEN, 0.2, 6)
    distance = _way(rng, 0.04)
    image = paint(image, cover(distance - 0.2), ROAD)
    return paint(image, cover(np.abs(distance) - 0.02), SNOW)


def _crops(rng: np.random.RandomState) -> Array:
    x, y = placed(rng, 0.5, np.pi, 0.8, 1.2)
    shade = rng.uniform(0.0, 1.0, size=(8, 8))[(np.floor(x * 1.3) % 8).astype(int), (np.floor(y * 1.3) % 8).astype(int)]
    image = paint(plain(GREEN), shade, SOIL)
    return image + 0.08 * np.sin(x * 22.0)[..., None]


def _houses(rng: np.random.RandomState) -> Array:
    image = _mottled(rng, GREEN, 0.2, 5)
    turn = rng.uniform(0, np.pi)
    for across in (-0.8, -0.25, 0.3, 0.85):
        for along in (-0.8, -0.25, 0.3, 0.85):
            at = frame((across + rng.uniform(-0.1, 0.1), along + rng.uniform(-0.1, 0.1)), turn)
            if rng.uniform() < 0.8:
                image = paint(image, cover(box(at, 0.17, 0.12)), ROOF)
    return image


def _industry(rng: np.random.RandomState) -> Array:
    image = _mottled(rng, ROAD, 0.15, 5)
    turn = rng.uniform(0, np.pi)
    for _ in range(4):
        at = frame((rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8)), turn)
        image = paint(image, cover(box(at, rng.uniform(0.25, 0.5), rng.uniform(0.2, 0.4))), STEEL)
    return image


def _desert(rng: np.random.RandomState) -> Array:
    x, _ = placed(rng, 0.5, np.pi, 0.9, 1.1)
    return _mottled(rng, SAND, 0.1, 3) + 0.05 * np.sin(x * 14.0 + 4.0 * smooth(rng, 3))[..., None]


def _mountains(rng: np.random.RandomState) -> Array:
    height = 0.6 * smooth(rng, 3) + 0.4 * smooth(rng, 7)
    return paint(_mottled(rng, SOIL, 0.3, 8), np.clip((height - 0.5) * 8.0, 0.0, 1.0), SNOW)


def _orchard(rng: np.random.RandomState) -> Array:
    x, y = placed(rng, 0.4, np.pi, 0.9, 1.1)
    return paint(plain(SOIL), np.clip((np.sin(x * 11.0) * np.sin(y * 11.0)) * 5.0, 0.0, 1.0), DARK)


def _village(rng: np.random.RandomState) -> Array:
    image = _mottled(rng, GREEN, 0.2, 5)
    ends = rng.uniform(-1, 1, size=(3, 2))
    roads = [[(0.0, 0.0), (2 * end[0], 2 * end[1])] for end in ends]
    image = paint(image, cover(strokes(GRID, roads) - 0.06), ROAD)
    for _ in range(4):
        at = frame((rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6)), rng.uniform(0, np.pi))
        image = paint(image, cover(box(at, 0.16, 0.11)), ROOF)
    return image


_LANDS: dict[str, Land] = {
    "forest": _forest, "pasture": _pasture, "lake": _lake, "river": _river, "highway": _highway, "crops": _crops,
    "houses": _houses, "industry": _industry, "desert": _desert, "mountains": _mountains, "orchard": _orchard,
    "village": _village,
}  # fmt: skip
CLASSES = tuple(_LANDS)


def draw(rng: np.random.RandomState, label: int, field: bool) -> Array:
    """One patch; in the field with the colours of another season, haze, sensor noise."""
    image = _LANDS[CLASSES[label]](rng) + grain(rng, 0.04)[..., None]
    if field:
        season = rng.uniform(0.65, 1.35, size=3)
        haze = rng.uniform(0.0, 0.45)
        image = image * season * (1.0 - haze) + 0.75 * haze
    return weathered(rng, image, field)


GENERATOR = Generator(CLASSES, ("a satellite photo of {c}.", "an aerial view of {c}."), draw)
