"""What a generator of images is: words, prompts, a drawing for each class in two domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..canvas import Array, Colour, grain, smooth

Draw = Callable[[np.random.RandomState, int, bool], Array]


@dataclass(frozen=True)
class Generator:
    """One task: `draw(rng, label, field)` gives an image in 0 to 1.

    Images of the catalogue (``field`` false) are clean and posed; the task itself is about those of the field.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    draw: Draw


@dataclass(frozen=True)
class Palette:
    """Least and greatest shares of red, green, blue: of the ground, of the thing on it."""

    ground: tuple[Colour, Colour]
    thing: tuple[Colour, Colour]


CATALOGUE = Palette(((0.85, 0.85, 0.85), (1.0, 1.0, 1.0)), ((0.0, 0.0, 0.0), (0.35, 0.35, 0.35)))
ANY = Palette(((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))


def inks(rng: np.random.RandomState, palette: Palette) -> tuple[Colour, Colour]:
    """Colours of ground and thing that differ enough in brightness."""
    while True:
        ground, thing = _colour(rng, *palette.ground), _colour(rng, *palette.thing)
        if abs(sum(ground) - sum(thing)) > 0.45:
            return ground, thing


def weathered(rng: np.random.RandomState, image: Array, field: bool) -> Array:
    """Light that differs over the image, with grain; both stronger in the field."""
    light, noise = (0.35, 0.06) if field else (0.05, 0.02)
    shade = 1.0 - light * smooth(rng, 2)
    return image * shade[..., None] + grain(rng, noise)[..., None]


def _colour(rng: np.random.RandomState, low: Colour, high: Colour) -> Colour:
    red, green, blue = rng.uniform(low, high)
    return float(red), float(green), float(blue)
