"""Drawing on a small float64 canvas by distances to outlines.

Coordinates run from -1 to 1, x to the right, y upwards. Everything is float64 arithmetic on numpy's frozen
``RandomState`` streams: a difference in the last bit between machines does not reach the eight bits that are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Point = tuple[float, float]
Colour = tuple[float, float, float]
Places = tuple[Array, Array]

SIDE: Final = 32
PIXEL: Final = 2.0 / SIDE
_AXIS: Final[Array] = (np.arange(SIDE, dtype=np.float64) + 0.5) * PIXEL - 1.0
GRID: Final[Places] = (np.tile(_AXIS, (SIDE, 1)), np.tile(-_AXIS[:, None], (1, SIDE)))


def stream(*key: object) -> np.random.RandomState:
    """A random stream that is a function of the key alone."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype=">u4").astype(np.uint32))


def placed(rng: np.random.RandomState, shift: float, turn: float, small: float, large: float) -> Places:
    """The grid as a thing sees it that is moved, turned (radians) by at most that much, scaled by small to large."""
    centre = rng.uniform(-shift, shift), rng.uniform(-shift, shift)
    return frame(centre, rng.uniform(-turn, turn), rng.uniform(small, large))


def frame(centre: Point = (0.0, 0.0), turn: float = 0.0, scale: float = 1.0) -> Places:
    """The grid as a thing at `centre`, turned counter-clockwise and scaled, sees it; distances are in its own unit."""
    x, y = (GRID[0] - centre[0]) / scale, (GRID[1] - centre[1]) / scale
    cos, sin = np.cos(turn), np.sin(turn)
    return x * cos + y * sin, y * cos - x * sin


def disc(at: Places, radius: float, centre: Point = (0.0, 0.0)) -> Array:
    """Signed distance to a circle, negative inside."""
    return length(at[0] - centre[0], at[1] - centre[1]) - radius


def box(at: Places, width: float, height: float, centre: Point = (0.0, 0.0)) -> Array:
    """Signed distance to an upright rectangle with these half sides."""
    dx, dy = np.abs(at[0] - centre[0]) - width, np.abs(at[1] - centre[1]) - height
    return length(np.maximum(dx, 0.0), np.maximum(dy, 0.0)) + np.minimum(np.maximum(dx, dy), 0.0)


def strokes(at: Places, lines: Sequence[Sequence[Point]]) -> Array:
    """Distance to the nearest of several open polylines."""
    starts = np.array([p for line in lines for p in line[:-1]])
    ends = np.array([p for line in lines for p in line[1:]])
    return _to_segments(at, starts, ends)


def polygon(at: Places, corners: Sequence[Point]) -> Array:
    """Signed distance to a closed polygon, negative inside."""
    starts = np.array(corners)
    ends = np.roll(starts, -1, axis=0)
    x, y = at[0][None], at[1][None]
    x0, y0, x1, y1 = (v[:, None, None] for v in (starts[:, 0], starts[:, 1], ends[:, 0], ends[:, 1]))
    rises = (y1 - y0) + 1e-12
    crossed = ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / rises + x0)
    inside = crossed.sum(axis=0) % 2 == 1
    distance = _to_segments(at, starts, ends)
    return np.where(inside, -distance, distance)


def regular(corners: int, radius: float = 1.0, inner: float | None = None, turn: float = 0.0) -> list[Point]:
    """Corners of a regular polygon with one at the top; with `inner` a star."""
    count = corners if inner is None else 2 * corners
    radii = [radius if inner is None or i % 2 == 0 else inner for i in range(count)]
    angles = [np.pi / 2 + turn + 2 * np.pi * i / count for i in range(count)]
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


def length(x: Array, y: Array) -> Array:
    """The Euclidean norm. Not hypot: a square root is rounded alike everywhere, and it is faster."""
    found: Array = np.sqrt(x * x + y * y)
    return found


def _to_segments(at: Places, starts: Any, ends: Any) -> Array:
    way = (ends - starts)[:, :, None, None]
    dx, dy = at[0] - starts[:, 0, None, None], at[1] - starts[:, 1, None, None]
    squared = np.maximum((way * way).sum(axis=1), 1e-12)
    along = np.clip((dx * way[:, 0] + dy * way[:, 1]) / squared, 0.0, 1.0)
    dx -= along * way[:, 0]
    dy -= along * way[:, 1]
    nearest: Array = np.sqrt((dx * dx + dy * dy).min(axis=0))
    return nearest


def cover(distance: Array, scale: float = 1.0) -> Array:
    """The share of each pixel that lies inside; `scale` is that of the frame."""
    share: Array = np.clip(0.5 - distance * scale / PIXEL, 0.0, 1.0)
    return share


def plain(colour: Colour) -> Array:
    """A canvas of one colour, [SIDE, SIDE, 3] in 0 to 1."""
    image: Array = np.ones((SIDE, SIDE, 3)) * np.array(colour)
    return image


def paint(image: Array, share: Array, colour: Colour) -> Array:
    """The image with the colour laid over it where `share` is 1."""
    painted: Array = image * (1.0 - share[..., None]) + share[..., None] * np.array(colour)
    return painted


def smooth(rng: np.random.RandomState, cells: int) -> Array:
    """A smooth random field in 0 to 1: values on a lattice of `cells`, cubic steps between them."""
    values = rng.uniform(size=(cells + 1, cells + 1))
    position = (np.arange(SIDE) + 0.5) * cells / SIDE
    index = position.astype(np.int64)
    part = position - index
    weight = part * part * (3.0 - 2.0 * part)
    rows = values[index] * (1.0 - weight)[:, None] + values[index + 1] * weight[:, None]
    field: Array = rows[:, index] * (1.0 - weight) + rows[:, index + 1] * weight
    return field


def grain(rng: np.random.RandomState, size: float) -> Array:
    """Independent noise for each pixel, uniform between -size and size."""
    return rng.uniform(-size, size, size=(SIDE, SIDE))
