"""Statistics of every model of a fusion, under the names that its slots go by."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import BLOCK
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Inputs

if TYPE_CHECKING:
    from fusion_bench.checkpoint.align import Alignment
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.statistics import Statistics


def of_models(inputs: Inputs, measure: Callable[[str, Checkpoint], Statistics]) -> dict[str, Statistics]:
    """What `measure` finds of each model, one after the other, indexed by the reference's names."""
    found = {}
    for name, model in inputs.models.items():
        found[name] = measure(name, model).renamed({each: model.stored(each) for each in inputs.alignment.floating})
    return found


def common(statistics: Iterable[Statistics], names: Iterable[str]) -> frozenset[str]:
    """Those of the names for which every model has a statistic."""
    each = list(statistics)
    return frozenset(name for name in names if all(name in found for found in each))


def costs(statistics: Mapping[str, Statistics]) -> dict[str, Any]:
    """What was measured of each model, and its cost, for the report."""
    return {name: dict(found.record) for name, found in statistics.items()}


def norm(statistics: Statistics, names: Iterable[str]) -> float:
    """The Euclidean norm of the statistics of some parameters as one vector, read slice by slice."""
    from fusion_bench.ops import sums

    total = 0.0
    for name in sorted(names):
        numel = statistics.tensors.info(statistics.index[name]).numel
        for start in range(0, numel, BLOCK):
            total += sums.square(statistics.read(name, start, min(start + BLOCK, numel)))
    return float(total**0.5)


def excluded(patterns: Sequence[str], names: Iterable[str]) -> frozenset[str]:
    """The names in which one of the regular expressions is found."""
    forms = [re.compile(pattern) for pattern in patterns]
    return frozenset(name for name in names if any(form.search(name) for form in forms))


def check_patterns(patterns: Sequence[str], alignment: Alignment | None = None) -> None:
    """ConfigError for patterns that are no regular expressions, and for those that are found in no tensor's name."""
    faults = []
    for pattern in patterns:
        try:
            form = re.compile(pattern)
        except re.error as fault:
            faults.append(f"method.exclude: {pattern!r} is no regular expression ({fault}).")
            continue
        if alignment is not None and not any(form.search(name) for name in alignment.names):
            faults.append(
                f"method.exclude: {pattern!r} is found in no tensor's name, such as "
                f"{', '.join(alignment.floating[:5])}."
            )
    if faults:
        raise ConfigError("\n".join(faults))
