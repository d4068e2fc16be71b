"""Surfaces that repeat themselves or are irregular all over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..canvas import SIDE, Array, Places, length, paint, placed, plain, smooth
from .draft import CATALOGUE, Generator, Palette, inks, weathered

Surface = Callable[[np.random.RandomState, Places], Array]


def _wave(phase: Array) -> Array:
    wave: Array = np.clip(0.5 + 1.5 * np.sin(phase), 0.0, 1.0)
    return wave


def _bricks(at: Places) -> Array:
    row = np.floor(at[1] * 3.0)
    across = (at[0] * 1.6 + 0.5 * (row % 2)) % 1.0
    return np.where((across < 0.18) | ((at[1] * 3.0) % 1.0 < 0.25), 1.0, 0.0)


def _cells(rng: np.random.RandomState, at: Places) -> Array:
    centres = rng.uniform(-1.5, 1.5, size=(26, 2))
    distance = length(at[0] - centres[:, 0, None, None], at[1] - centres[:, 1, None, None])
    distance = np.partition(distance, 1, axis=0)
    edges: Array = np.clip(1.0 - (distance[1] - distance[0]) * 7.0, 0.0, 1.0)
    return edges


def _speckled(rng: np.random.RandomState, at: Places) -> Array:
    return np.where(rng.uniform(size=(SIDE, SIDE)) < 0.25, 1.0, 0.0)


_SURFACES: dict[str, Surface] = {
    "striped": lambda rng, at: _wave(at[0] * 9.0),
    "chequered": lambda rng, at: np.where(np.sin(at[0] * 7.0) * np.sin(at[1] * 7.0) > 0, 1.0, 0.0),
    "dotted": lambda rng, at: np.clip((np.sin(at[0] * 9.0) * np.sin(at[1] * 9.0) - 0.35) * 4.0, 0.0, 1.0),
    "grid": lambda rng, at: np.maximum(_wave(at[0] * 10.0 - 0.7) ** 4, _wave(at[1] * 10.0 - 0.7) ** 4),
    "zigzag": lambda rng, at: _wave(at[1] * 10.0 + 3.0 * np.abs((at[0] * 2.0) % 2.0 - 1.0)),
    "wavy": lambda rng, at: _wave(at[1] * 10.0 + 1.8 * np.sin(at[0] * 5.0)),
    "banded": lambda rng, at: _wave(12.0 * length(at[0] - 0.1, at[1])),
    "bricked": lambda rng, at: _bricks(at),
    "cracked": _cells,
    "blotchy": lambda rng, at: np.clip((smooth(rng, 5) - 0.5) * 6.0 + 0.5, 0.0, 1.0),
    "speckled": _speckled,
    "fading": lambda rng, at: np.clip(0.5 + 0.6 * at[0], 0.0, 1.0),
}
CLASSES = tuple(_SURFACES)
_STONE = Palette(((0.6, 0.5, 0.35), (0.95, 0.85, 0.7)), ((0.15, 0.1, 0.05), (0.45, 0.35, 0.3)))


def draw(rng: np.random.RandomState, label: int, field: bool) -> Array:
    """One surface; in the field from any side, at another scale, of low contrast."""
    ground, ink = inks(rng, _STONE if field else CATALOGUE)
    at = placed(rng, 0.5, np.pi, 0.7, 1.2) if field else placed(rng, 0.3, 0.1, 0.9, 1.1)
    contrast = rng.uniform(0.5, 0.95) if field else 0.95
    return weathered(rng, paint(plain(ground), contrast * _SURFACES[CLASSES[label]](rng, at), ink), field)


GENERATOR = Generator(CLASSES, ("a photo of a {c} texture.", "a photo of a {c} pattern."), draw)
