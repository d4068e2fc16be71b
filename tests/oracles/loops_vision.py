"""Zero-shot heads, image corruptions, paired comparisons told again, one pixel or example at a time.

Images are [height, width, channels] floats on [0, 1]; whatever is random arrives as an argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from loops_common import dot, norm

Image = np.ndarray
Tap = tuple[int, int, float]
"""How far down, how far right, with what weight."""

GAUSSIAN_NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)
IMPULSE_NOISE = (0.01, 0.02, 0.03, 0.05, 0.07)
MOTION_BLUR = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
JPEG = (80, 65, 58, 50, 40)
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)
SPATTER = (
    (0.62, 0.1, 0.7, 0.7, 0.5, "water"),
    (0.65, 0.1, 0.8, 0.7, 0.5, "water"),
    (0.65, 0.3, 1.0, 0.69, 0.5, "water"),
    (0.65, 0.1, 0.7, 0.69, 0.6, "mud"),
    (0.65, 0.1, 0.5, 0.68, 0.6, "mud"),
)
"""loc, scale, σ, threshold, strength, kind, for severities 1 to 5."""
SPATTER_COLOUR = {
    "water": (175 / 255, 238 / 255, 238 / 255),
    "mud": (63 / 255, 42 / 255, 20 / 255),
}


def unit(vector: Sequence[float]) -> list[float]:
    """v / ‖v‖₂."""
    length = norm(vector)
    return [entry / length for entry in vector]


def zero_shot_head(embeddings: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """One row per class from [classes][templates][dim]: normalise, mean over templates, normalise."""
    out = []
    for templates in embeddings:
        total = [0.0] * len(templates[0])
        for template in templates:
            for d, entry in enumerate(unit(template)):
                total[d] += entry / len(templates)
        out.append(unit(total))
    return out


def zero_shot_logits(images: Sequence[Sequence[float]], head: Sequence[Sequence[float]], logit_scale: float) -> Image:
    """exp(logit_scale)·cos(image, class); the rows of the head have length 1."""
    return np.array([[math.exp(logit_scale) * dot(unit(image), row) for row in head] for image in images])


def clipped(image: Image) -> Image:
    return np.asarray(np.minimum(np.maximum(image, 0.0), 1.0))


def gaussian_noise(image: Image, noise: Image, sigma: float) -> Image:
    """x + σ·noise with standard normal noise of the shape of x, clipped."""
    return clipped(np.asarray(image, dtype=np.float64) + sigma * noise)


def impulse_noise(image: Image, hit: Image, salt: Image) -> Image:
    """1 where hit is salt, 0 where hit is pepper; both masks are per entry, or per pixel if they have two axes."""
    out = np.array(image, dtype=np.float64)
    height, width, channels = out.shape
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                place = (y, x, c)[: hit.ndim]
                if hit[place]:
                    out[y, x, c] = 1.0 if salt[place] else 0.0
    return out


def contrast(image: Image, c: float) -> Image:
    """(x − mean)·c + mean with the mean of each channel over the image, clipped."""
    out = np.array(image, dtype=np.float64)
    height, width, channels = out.shape
    for channel in range(channels):
        total = 0.0
        for y in range(height):
            for x in range(width):
                total += float(image[y, x, channel])
        mean = total / (height * width)
        out[:, :, channel] = (out[:, :, channel] - mean) * c + mean
    return clipped(out)


def motion_taps(radius: int, sigma: float, angle: float, centred: bool = False) -> list[Tap]:
    """The pixels a moving camera mixes: 2·radius + 1 of them along `angle` (degrees, 0 = right, 90 = down).

    Reading: weights exp(−i²/2σ²) over their sum at distance i; i runs from 0 to 2·radius, one way (what the
    CIFAR-10-C family does), or from −radius to radius (`centred`). Each place is the nearest pixel, halves down:
    ceil(i·sin − ½) down, ceil(i·cos − ½) right.
    """
    distances = range(-radius, radius + 1) if centred else range(2 * radius + 1)
    weights = [math.exp(-i * i / (2.0 * sigma * sigma)) for i in distances]
    turn = math.radians(angle)
    return [
        (math.ceil(i * math.sin(turn) - 0.5), math.ceil(i * math.cos(turn) - 0.5), weight / sum(weights))
        for i, weight in zip(distances, weights, strict=True)
    ]


def mixed(image: Image, taps: Sequence[Tap]) -> Image:
    """out(y, x) = Σ weight·image(y + down, x + right); beyond the border the nearest pixel of the image counts."""
    height, width, _ = image.shape
    out = np.zeros(image.shape, dtype=np.float64)
    for y in range(height):
        for x in range(width):
            for down, right, weight in taps:
                row = min(max(y + down, 0), height - 1)
                column = min(max(x + right, 0), width - 1)
                out[y, x] += weight * np.asarray(image[row, column], dtype=np.float64)
    return out


def motion_blur(image: Image, radius: int, sigma: float, angle: float, centred: bool = False) -> Image:
    """The convolution with `motion_taps`."""
    return clipped(mixed(image, motion_taps(radius, sigma, angle, centred)))


def box_row(size: int, target: int) -> list[list[int]]:
    """Which of `size` pixels make each of `target` pixels: those whose centre lies in a window of max(1, size/target).

    The window around (i + ½)·size/target is open at its left end and closed at its right end.
    """
    scale = size / target
    half = max(scale, 1.0) / 2.0
    out = []
    for i in range(target):
        middle = (i + 0.5) * scale
        out.append([j for j in range(size) if -half < j + 0.5 - middle <= half])
    return out


def box_resize(image: Image, height: int, width: int) -> Image:
    """The plain mean of the pixels of each window: Pillow's box filter, without its rounding to bytes.

    It is not the mean weighted by the area of overlap: a pixel is in or out.
    """
    rows, columns = box_row(image.shape[0], height), box_row(image.shape[1], width)
    out = np.zeros((height, width, image.shape[2]), dtype=np.float64)
    for y in range(height):
        for x in range(width):
            for row in rows[y]:
                for column in columns[x]:
                    share = 1.0 / (len(rows[y]) * len(columns[x]))
                    out[y, x] += share * np.asarray(image[row, column], dtype=np.float64)
    return out


def pixelate_parity(image: Image, c: float) -> Image:
    """Box filter to int(32c) squared, then to 32×32, whatever the size of the input."""
    small = box_resize(image, int(32 * c), int(32 * c))
    return box_resize(small, 32, 32)


def pixelate(image: Image, c: float) -> Image:
    """Box filter to int(c·height) × int(c·width), at least 1, then back to the size of the input."""
    height, width, _ = image.shape
    small = box_resize(image, max(1, int(c * height)), max(1, int(c * width)))
    return box_resize(small, height, width)


def covered(image: Image, mask: Image, colour: Sequence[float]) -> Image:
    """x(1 − m) + colour·m with a mask of [height, width] on [0, 1]: mud; clipped."""
    out = np.array(image, dtype=np.float64)
    for channel, tone in enumerate(colour):
        out[:, :, channel] = out[:, :, channel] * (1.0 - mask) + tone * mask
    return clipped(out)


def mean_squared_error(left: Image, right: Image) -> float:
    difference = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    return float(np.sum(difference * difference)) / difference.size


def standard_error(p: float, n: int) -> float:
    """√(p(1 − p)/n) of a share p of n examples."""
    return math.sqrt(p * (1.0 - p) / n)


def discordant(first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """How many examples only the first gets right, how many only the second."""
    only_first = only_second = 0
    for a, b in zip(first, second, strict=True):
        only_first += int(a == 1 and b == 0)
        only_second += int(a == 0 and b == 1)
    return only_first, only_second


def paired_difference(first: Sequence[int], second: Sequence[int]) -> tuple[float, float]:
    """Mean of a − b and its standard error √(Σ(d − d̄)²/n)/√n, the variance with n in the denominator."""
    n = len(first)
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = sum(differences) / n
    spread = sum((difference - mean) ** 2 for difference in differences) / n
    return mean, math.sqrt(spread / n)


def mcnemar(first: Sequence[int], second: Sequence[int], continuity: bool = False) -> tuple[float, float]:
    """(b − c)²/(b + c), or (max(|b − c| − 1, 0))²/(b + c), and its tail of χ² with one degree of freedom.

    No discordant pair: 0 and 1.
    """
    b, c = discordant(first, second)
    if b + c == 0:
        return 0.0, 1.0
    gap = max(abs(b - c) - 1, 0) if continuity else abs(b - c)
    statistic = gap * gap / (b + c)
    return statistic, math.erfc(math.sqrt(statistic / 2.0))


def mcnemar_exact(first: Sequence[int], second: Sequence[int]) -> float:
    """Two-sided binomial p-value: min(1, 2·P(X ≤ min(b, c))) with X of b + c throws of a fair coin."""
    b, c = discordant(first, second)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    return float(min(1.0, 2.0 * tail))
