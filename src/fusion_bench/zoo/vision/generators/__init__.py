"""One module for each task: how its images are drawn."""

from __future__ import annotations

from typing import Final

from . import counting, digits, letters, orientation, shapes, signs, terrain, textures
from .draft import Generator

GENERATORS: Final[dict[str, Generator]] = {
    "counting": counting.GENERATOR,
    "digits": digits.GENERATOR,
    "letters": letters.GENERATOR,
    "orientation": orientation.GENERATOR,
    "shapes": shapes.GENERATOR,
    "signs": signs.GENERATOR,
    "terrain": terrain.GENERATOR,
    "textures": textures.GENERATOR,
}

__all__ = ["GENERATORS", "Generator"]
