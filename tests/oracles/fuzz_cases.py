"""Random cases whose patterns and number of models can be chosen, so that comparisons have no undecidable ties."""

from __future__ import annotations

import loops
import numpy as np
from hypothesis import strategies as st
from test_against_loops import DTYPES, NAMES, PATTERNS, SHAPES, Case, entries

# Patterns on which sums of few models are exact, so that equal numbers are equal in every precision.
EXACT = ["grid", "grid", "zero", "equal", "opposite", "two_magnitudes"]
ROUGH = ["smooth", "smooth", "zero"]
__all__ = ["EXACT", "PATTERNS", "ROUGH", "Case", "cases_of", "chance_draws", "zeros_like"]


@st.composite
def cases_of(
    draw: st.DrawFn, patterns: list[str] = PATTERNS, counts: tuple[int, ...] = (3, 2, 5, 4, 1), same: bool = False
) -> Case:
    """A base and models whose changes follow `patterns`; with `same` the first model's are of the same kind."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    shapes = {name: draw(st.sampled_from(SHAPES)) for name in names}
    count = draw(st.sampled_from(counts))
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    chosen = [{name: draw(st.sampled_from(patterns)) for name in names} for _ in range(count)]
    zero_base = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = DTYPES[dtype]
    base = {
        name: np.asarray(np.zeros(shapes[name]) if zero_base else rng.integers(-8, 9, size=shapes[name]) / 8, kind)
        for name in names
    }
    changes: list[dict[str, np.ndarray]] = []
    for row in chosen:
        change: dict[str, np.ndarray] = {}
        for name, pattern in row.items():
            kind_of_first = "smooth" if same else "grid"
            first = changes[0][name] if changes else np.asarray(entries(kind_of_first, shapes[name], rng))
            if pattern in ("equal", "opposite"):
                change[name] = first if pattern == "equal" else -first
            else:
                change[name] = np.zeros(shapes[name]) if pattern == "zero" else entries(pattern, shapes[name], rng)
        changes.append({name: np.asarray(values) for name, values in change.items()})
    models = [{name: np.asarray(base[name] + change[name].astype(kind), kind) for name in names} for change in changes]
    shuffles = [[names[i] for i in rng.permutation(len(names))] for _ in range(count + 1)]
    return Case(base, models, dtype, shuffles)


def chance_draws(case: Case, seed: int = 42) -> list[dict[str, np.ndarray]]:
    """The uniform numbers that belong to each entry of each model, in [0, 1)."""
    from fusion_bench.ops import random

    def uniform(model: str, name: str, values: np.ndarray) -> np.ndarray:
        drawn = random.bits(seed, model, name, 0, values.size).numpy().astype(np.float64)
        return ((drawn + 2.0**31) / 2.0**32).reshape(values.shape)

    return [
        {name: uniform(f"model_{i}", name, values) for name, values in case.base.items()}
        for i in range(len(case.models))
    ]


def zeros_like(base: loops.Model) -> dict[str, np.ndarray]:
    return {name: np.zeros(values.shape) for name, values in base.items()}
