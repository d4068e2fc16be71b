"""Drops of water or mud on the lens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]

# Mean, deviation, blur, threshold of the liquid; strength of water, blur of mud; kind: CIFAR-10-C (arXiv:1903.12261).
_CONSTANTS: Final = (
    (0.62, 0.1, 0.7, 0.7, 0.5, "water"),
    (0.65, 0.1, 0.8, 0.7, 0.5, "water"),
    (0.65, 0.3, 1.0, 0.69, 0.5, "water"),
    (0.65, 0.1, 0.7, 0.69, 0.6, "mud"),
    (0.65, 0.1, 0.5, 0.68, 0.6, "mud"),
)
_WATER: Final = (175, 238, 238)
_MUD: Final = (63, 42, 20)
# Brightness steps at which an edge of the liquid begins, and at which it is certain (Canny, 1986).
_EDGES: Final = (50, 150)
# Pixels beyond which a drop looks flat.
_DEEP: Final = 20
# Light from the upper left.
_RELIEF: Final = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def spatter(image: Reals, severity: int, random: np.random.Generator) -> Reals:
    """An image with values from 0 to 1 under a liquid: blurred noise where it exceeds a threshold."""
    import numpy as np
    from scipy import ndimage

    mean, deviation, blur, threshold, strength, kind = _CONSTANTS[severity - 1]
    liquid = ndimage.gaussian_filter(random.normal(mean, deviation, image.shape[:2]), blur, mode="nearest")
    liquid[liquid < threshold] = 0
    if kind == "mud":
        cover = ndimage.gaussian_filter((liquid > threshold).astype(np.float64), strength, mode="nearest")
        cover[cover < 0.8] = 0
        cover = cover[:, :, None]
        muddy: Reals = image * (1 - cover) + cover * np.array(_MUD) / 255
        return muddy
    depth = (np.clip(liquid, 0, 1) * 255).astype(np.uint8)
    light = depth * _relief(depth)
    brightest = light.max()
    if brightest > 0:
        light = light / brightest * strength
    wet: Reals = image + light[:, :, None] * np.array(_WATER) / 255
    return wet


def _relief(depth: NDArray[np.uint8]) -> Reals:
    """How bright each point of the water is: the distance from its edges, evened out, lit from one side."""
    import numpy as np
    from scipy import ndimage

    edges = _edges(depth.astype(np.float64))
    far = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(depth.shape, float(_DEEP))
    distance = np.rint(ndimage.uniform_filter(np.minimum(far, _DEEP), 3, mode="mirror")).astype(np.int64)
    lit = ndimage.correlate(_equalized(distance), np.array(_RELIEF, dtype=np.float64), mode="mirror")
    found: Reals = ndimage.uniform_filter(np.clip(lit, 0, 255), 3, mode="mirror")
    return found


def _equalized(values: NDArray[np.int64]) -> Reals:
    """Brightness from 0 to 255 so that each step holds as many pixels as the next; one value alone is left."""
    import numpy as np

    counts = np.bincount(values.ravel(), minlength=256)
    first = int(np.flatnonzero(counts)[0])
    rest = values.size - counts[first]
    if rest == 0:
        return values.astype(np.float64)
    steps = np.rint((np.cumsum(counts) - counts[first]) * 255 / rest)
    found: Reals = steps[values]
    return found


def _edges(image: Reals) -> Any:
    """Canny's edges: ridges of the gradient that are steep, or touch a steep one."""
    import numpy as np
    from scipy import ndimage

    across, down = (ndimage.sobel(image, axis=axis, mode="nearest") for axis in (1, 0))
    steep = np.abs(across) + np.abs(down)
    padded = np.pad(steep, 1)
    # The direction of the gradient to the nearest 45 degrees, where y points down.
    octant = np.rint(np.arctan2(down, across) / (np.pi / 4)).astype(int) % 4
    ridge = np.zeros(image.shape, dtype=bool)
    height, width = image.shape
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        ridge |= (octant == number) & (steep > behind) & (steep >= ahead)
    weak, strong = ridge & (steep > _EDGES[0]), ridge & (steep > _EDGES[1])
    return ndimage.binary_propagation(strong, structure=np.ones((3, 3)), mask=weak)
