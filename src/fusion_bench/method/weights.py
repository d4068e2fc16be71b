"""Weights of models, given by name or in pool order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusion_bench.errors import ConfigError, unknown

Weights = Mapping[str, float] | tuple[float, ...] | None


def by_model(weights: Weights, models: Sequence[str], key: str = "method.weights") -> tuple[float, ...]:
    """One weight a model, in pool order; all 1 where none are given. ConfigError, naming `key`, if they do not fit."""
    if weights is None:
        return (1.0,) * len(models)
    if isinstance(weights, Mapping):
        strangers = [name for name in weights if name not in models]
        if strangers:
            raise ConfigError("\n".join(unknown("model", name, models, key) for name in strangers))
        missing = [name for name in models if name not in weights]
        if missing:
            raise ConfigError(
                f"{key}: no weight for {', '.join(missing)}. Give every model of the pool a weight "
                "(0 leaves it out), or choose members with modelpool.select."
            )
        return tuple(float(weights[name]) for name in models)
    if len(weights) != len(models):
        raise ConfigError(
            f"{key}={list(weights)}: {len(weights)} weights for {len(models)} models. "
            f"Give one weight for each of {', '.join(models)}, in this order."
        )
    return tuple(float(weight) for weight in weights)


def normalized(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights divided by their sum."""
    whole = sum(weights)
    return tuple(weight / whole for weight in weights)
