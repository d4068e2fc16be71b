"""Damage to images as natural distribution shifts do it, in five degrees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.errors import ConfigError, unknown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]
    Reals = NDArray[np.float64]

# The order of the FusionBench paper's Figure 3 (arXiv:2406.03280).
CORRUPTIONS: Final = (
    "motion_blur",
    "impulse_noise",
    "gaussian_noise",
    "pixelate",
    "spatter",
    "contrast",
    "jpeg_compression",
)
_ALIASES: Final[Mapping[str, str]] = {"jpeg": "jpeg_compression", "impluse_noise": "impulse_noise"}

# Constants by severity from 1 to 5, those of CIFAR-10-C (Hendrycks and Dietterich, arXiv:1903.12261).
_GAUSSIAN: Final = (0.04, 0.06, 0.08, 0.09, 0.10)
_IMPULSE: Final = (0.01, 0.02, 0.03, 0.05, 0.07)
_MOTION: Final = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))
_CONTRAST: Final = (0.75, 0.5, 0.4, 0.3, 0.15)
_JPEG: Final = (80, 65, 58, 50, 40)
_PIXELATE: Final = (0.95, 0.9, 0.85, 0.75, 0.65)
_CIFAR: Final = 32


def canonical_corruption(name: str | None) -> str | None:
    """The corruption in its own spelling; None stays None. ConfigError for an unknown one."""
    if name is None:
        return None
    known = _ALIASES.get(name.lower(), name.lower())
    if known not in CORRUPTIONS:
        raise ConfigError(unknown("corruption", name, [*CORRUPTIONS, *_ALIASES], where="taskpool.corruption"))
    return known


def corrupt(image: Image, name: str, severity: int, *, index: int, parity: bool = False) -> Image:
    """The damaged image, of the same height, width and three channels, rounded to bytes. The input is left alone.

    `image`: rows x columns x red-green-blue; `severity`: 1 to 5; `index`: the image's place in its data set. What is
    random is seeded by (index, name, severity) alone. `parity`: ``pixelate`` gives 32 x 32 pixels whatever the input
    is, as the code behind the published scores does; otherwise its degree is relative to the size of the image.
    """
    import numpy as np

    known = canonical_corruption(name)
    if not 1 <= severity <= len(_GAUSSIAN):
        raise ConfigError(f"taskpool.severity={severity}: out of range; accepted: 1 to {len(_GAUSSIAN)}.")
    assert known is not None
    if image.size == 0:
        return image.copy()
    if known == "pixelate":
        return _pixelate(image, _PIXELATE[severity - 1], parity)
    if known == "jpeg_compression":
        return _jpeg(image, _JPEG[severity - 1])
    damaged = _ON_REALS[known](image.astype(np.float64) / 255, severity, _random(known, severity, index))
    rounded: Image = np.rint(np.clip(damaged, 0, 1) * 255).astype(np.uint8)
    return rounded


def _random(name: str, severity: int, index: int) -> np.random.Generator:
    import numpy as np

    seed = hashlib.blake2b(f"fusion_bench/{name}/{severity}/{index}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(seed, "little"))


def _gaussian_noise(image: Reals, severity: int, random: np.random.Generator) -> Reals:
    return image + random.normal(scale=_GAUSSIAN[severity - 1], size=image.shape)


def _impulse_noise(image: Reals, severity: int, random: np.random.Generator) -> Reals:
    """Salt or pepper, at equal odds, in a share of all values."""
    import numpy as np

    hit = random.random(image.shape) < _IMPULSE[severity - 1]
    salt = random.random(image.shape) < 0.5
    return np.where(hit, salt.astype(np.float64), image)


def _contrast(image: Reals, severity: int, random: np.random.Generator) -> Reals:
    mean = image.mean(axis=(0, 1), keepdims=True)
    damaged: Reals = (image - mean) * _CONTRAST[severity - 1] + mean
    return damaged


def _motion_blur(image: Reals, severity: int, random: np.random.Generator) -> Reals:
    """A trail: sum over i = 0 … 2 radius of w_i times the image moved by i along an angle within 45 degrees.

    w_i is proportional to exp(-i² / 2σ²); moves are whole pixels, what lies outside repeats the edge.
    """
    import numpy as np

    radius, sigma = _MOTION[severity - 1]
    angle = np.deg2rad(random.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = image.shape[:2]
    damaged = np.zeros_like(image)
    for step, weight in zip(steps, weights, strict=True):
        rows = np.clip(np.arange(height) + int(np.rint(step * np.sin(angle))), 0, height - 1)
        columns = np.clip(np.arange(width) + int(np.rint(step * np.cos(angle))), 0, width - 1)
        damaged += weight * image[rows[:, None], columns]
    return damaged


def _spatter(image: Reals, severity: int, random: np.random.Generator) -> Reals:
    from fusion_bench.taskpool.corruption_spatter import spatter

    return spatter(image, severity, random)


_ON_REALS: Final[Mapping[str, Callable[[Any, int, Any], Any]]] = {
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "motion_blur": _motion_blur,
    "contrast": _contrast,
    "spatter": _spatter,
}


def _jpeg(image: Image, quality: int) -> Image:
    import io

    import numpy as np
    from PIL import Image as Pillow

    content = io.BytesIO()
    Pillow.fromarray(image).save(content, "JPEG", quality=quality)
    with Pillow.open(content) as stored:
        return np.array(stored.convert("RGB"))


def _pixelate(image: Image, share: float, parity: bool) -> Image:
    import numpy as np
    from PIL import Image as Pillow

    box = Pillow.Resampling.BOX
    height, width = (_CIFAR, _CIFAR) if parity else image.shape[:2]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    return np.array(Pillow.fromarray(image).resize(small, box).resize((width, height), box))
