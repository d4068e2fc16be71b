"""Traffic signs: a board with a mark."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..canvas import Array, Colour, Places, box, cover, disc, frame, paint, plain, polygon, regular, smooth, strokes
from .draft import Generator, weathered

RED, BLUE, WHITE, BLACK, YELLOW = (
    (0.8, 0.1, 0.1), (0.1, 0.3, 0.8), (0.95, 0.95, 0.95), (0.08, 0.08, 0.08), (0.95, 0.8, 0.1),
)  # fmt: skip
_UP = [[(0.0, -0.55), (0.0, 0.5)], [(-0.3, 0.2), (0.0, 0.55), (0.3, 0.2)]]
_RIGHT = [[(-0.5, 0.0), (0.5, 0.0)], [(0.2, 0.3), (0.55, 0.0), (0.2, -0.3)]]
_LEFT = [[(-x, y) for x, y in line] for line in _RIGHT]
_CURVE = [[(-0.25, -0.45), (-0.25, 0.0), (0.2, 0.25), (0.2, 0.5)]]
_P = [[(-0.2, -0.55), (-0.2, 0.55), (0.2, 0.5), (0.3, 0.25), (0.2, 0.0), (-0.2, 0.0)]]
_X = [[(-0.35, -0.35), (0.35, 0.35)], [(-0.35, 0.35), (0.35, -0.35)]]
_BANG = [[(0.0, 0.35), (0.0, -0.1)], [(0.0, -0.35), (0.0, -0.38)]]


def _round(at: Places) -> Array:
    return disc(at, 0.95)


def _warning(at: Places) -> Array:
    return polygon(at, regular(3, 1.15))


def _yield(at: Places) -> Array:
    return polygon(at, regular(3, 1.15, turn=np.pi))


def _octagon(at: Places) -> Array:
    return polygon(at, regular(8, 1.0, turn=np.pi / 8))


def _board(at: Places) -> Array:
    return box(at, 0.8, 0.8)


def _priority(at: Places) -> Array:
    return polygon(at, regular(4, 1.05))


def _lines(marks: list[list[tuple[float, float]]]) -> Callable[[Places], Array]:
    return lambda at: strokes(at, marks) - 0.13


Mark = Callable[[Places], Array] | None
# Outline, colour of the rim, colour inside, mark, colour of the mark.
_SIGNS: dict[str, tuple[Callable[[Places], Array], Colour, Colour, Mark, Colour]] = {
    "stop": (_octagon, WHITE, RED, lambda at: box(at, 0.6, 0.16), WHITE),
    "yield": (_yield, RED, WHITE, None, WHITE),
    "priority": (_priority, WHITE, YELLOW, None, WHITE),
    "no vehicles": (_round, RED, WHITE, None, WHITE),
    "no entry": (_round, RED, RED, lambda at: box(at, 0.6, 0.17), WHITE),
    "no stopping": (_round, RED, BLUE, _lines(_X), RED),
    "straight ahead": (_round, WHITE, BLUE, _lines(_UP), WHITE),
    "turn right": (_round, WHITE, BLUE, _lines(_RIGHT), WHITE),
    "turn left": (_round, WHITE, BLUE, _lines(_LEFT), WHITE),
    "parking": (_board, WHITE, BLUE, _lines(_P), WHITE),
    "danger": (_warning, RED, WHITE, _lines(_BANG), BLACK),
    "crossing": (_warning, RED, WHITE, _lines(_X), BLACK),
    "curve": (_warning, RED, WHITE, _lines(_CURVE), BLACK),
    "speed limit": (_round, RED, WHITE, lambda at: np.abs(disc(at, 0.3)) - 0.1, BLACK),
}
CLASSES = tuple(_SIGNS)


def draw(rng: np.random.RandomState, label: int, field: bool) -> Array:
    """One sign; in the field small, askew, before houses or sky, in bad light."""
    outline, rim, inside, mark, ink = _SIGNS[CLASSES[label]]
    if field:
        sky, wall = rng.uniform(0.2, 0.9, size=3), rng.uniform(0.1, 0.7, size=3)
        image = paint(plain(tuple(sky)), np.where(smooth(rng, 3) > 0.5, 0.8, 0.0), tuple(wall))
        centre, turn, scale = tuple(rng.uniform(-0.25, 0.25, size=2)), rng.uniform(-0.3, 0.3), rng.uniform(0.5, 0.78)
    else:
        image = plain((0.9, 0.9, 0.9))
        centre, turn, scale = (0.0, 0.0), 0.0, rng.uniform(0.75, 0.85)
    at = frame(centre, turn, scale)
    body = outline(at)
    image = paint(image, cover(body, scale), rim)
    image = paint(image, cover(body + 0.2, scale), inside)
    if mark is not None:
        image = paint(image, cover(mark(at), scale), ink)
    if field:
        image = 0.5 + (image - 0.5) * rng.uniform(0.4, 1.0) + rng.uniform(-0.15, 0.15, size=3)
    return weathered(rng, image, field)


GENERATOR = Generator(CLASSES, ('a zoomed in photo of a "{c}" traffic sign.', 'a photo of a "{c}" traffic sign.'), draw)
