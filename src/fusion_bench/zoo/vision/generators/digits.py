"""Handwritten digits: the real ones of scikit-learn; in the catalogue digits of drawn strokes."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..canvas import Array, cover, paint, placed, plain, strokes
from ..glyphs import DIGITS
from .draft import Generator, weathered

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@cache
def originals() -> tuple[Array, NDArray[np.int64]]:
    """All handwritten digits, each content once: [n, 8, 8] in 0 to 1, labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    _, first = np.unique(data.images.reshape(len(data.images), -1), axis=0, return_index=True)
    first.sort()
    return data.images[first] / 16.0, data.target[first].astype(np.int64)


def enlarged(image: Array, rng: np.random.RandomState | None = None) -> Array:
    """A digit of 8 x 8 on the canvas, light on dark; with `rng` moved, turned, scaled a little."""
    at = placed(rng, 0.1, 0.2, 0.9, 1.08) if rng is not None else placed(np.random.RandomState(0), 0.0, 0.0, 1.0, 1.0)
    column, row = (at[0] + 1.0) * 4.0 - 0.5, (1.0 - at[1]) * 4.0 - 0.5
    padded = np.pad(image, 2)
    x, y = np.clip(column + 2.0, 0.0, 10.999), np.clip(row + 2.0, 0.0, 10.999)
    left, top = x.astype(np.int64), y.astype(np.int64)
    right, below = x - left, y - top
    upper = padded[top, left] * (1.0 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1.0 - right) + padded[top + 1, left + 1] * right
    grey: Array = upper * (1.0 - below) + lower * below
    return np.repeat(grey[..., None], 3, axis=2)


def draw(rng: np.random.RandomState, label: int, field: bool) -> Array:
    """A digit of strokes, white on black; the field has only real ones, so `field` changes nothing."""
    at = placed(rng, 0.1, 0.15, 0.6, 0.85)
    slant = rng.uniform(-0.25, 0.35)
    width = rng.uniform(0.1, 0.2)
    marks = strokes((at[0] - slant * at[1], at[1]), DIGITS[label]) - width
    image = paint(plain((0.0, 0.0, 0.0)), cover(marks, 0.35), (1.0, 1.0, 1.0))
    return weathered(rng, image, False)


GENERATOR = Generator(WORDS, ('a photo of the number: "{c}".', "the handwritten digit {c}."), draw)
