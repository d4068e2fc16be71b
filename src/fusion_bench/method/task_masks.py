"""The scales of TALL masks, one for all models or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusion_bench.method.weights import by_model

MaskScale = float | Mapping[str, float] | tuple[float, ...]


def mask_scales(scale: MaskScale, models: Sequence[str]) -> tuple[float, ...]:
    """One scale a model, in pool order. ConfigError where they do not fit the pool."""
    if isinstance(scale, (int, float)):
        return (float(scale),) * len(models)
    return by_model(scale, models, "method.mask_scale")
