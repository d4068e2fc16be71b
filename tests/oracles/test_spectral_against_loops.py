"""The methods on singular vectors against the oracle written from the formulas, on awkward shapes and values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import loops
import loops_spectral as spectral
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fusion_bench import Aswudi, Cart, IsoC, IsoCts, Lines, Svc, Swudi, TaskArithmetic, TsvMerging, Wudi, fuse

SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (5, 3), (3, 5), (2, 3, 4), (6, 1), (1, 6), (8, 8), (12, 5)]
KINDS = ["grid", "smooth", "low", "zero", "equal", "opposite", "scaled"]
DTYPES: Mapping[str, Any] = {"float64": np.float64, "float32": np.float32}
FUZZ: Mapping[str, Any] = {
    "deadline": None, "derandomize": True, "max_examples": 60, "suppress_health_check": [HealthCheck.too_slow],
}  # fmt: skip
Model = dict[str, np.ndarray]


class Case:
    """A base, its models and the dtype; every tensor with a shape of its own."""

    def __init__(self, dtype: str, shapes: list[tuple[int, ...]], kinds: list[list[str]], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.dtype = dtype
        as_stored = DTYPES[dtype]
        self.base: Model = {f"t{n}": rng.integers(-8, 9, size=s).astype(as_stored) / 8 for n, s in enumerate(shapes)}
        self.base = {name: np.asarray(tensor, as_stored) for name, tensor in self.base.items()}
        changes: list[Model] = []
        for row in kinds:
            change = {}
            for (name, start), kind in zip(self.base.items(), row, strict=True):
                first = changes[0][name] if changes else rng.standard_normal(start.shape)
                change[name] = np.asarray(self.drawn(kind, start.shape, first, rng))
            changes.append(change)
        self.models: list[Model] = [
            {name: np.asarray(self.base[name] + change[name], as_stored) for name in self.base} for change in changes
        ]

    @staticmethod
    def drawn(kind: str, shape: tuple[int, ...], first: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if kind == "low" and len(shape) == 2:
            return rng.integers(-2, 3, size=(shape[0], 1)) @ rng.integers(-2, 3, size=(1, shape[1])) / 2
        if kind == "grid":
            return rng.integers(-4, 5, size=shape) / 4
        made = {"zero": np.zeros(shape), "equal": first, "opposite": -first, "scaled": 3 * first}
        return made.get(kind, rng.standard_normal(shape))

    @property
    def matrices(self) -> list[str]:
        return [name for name, tensor in self.base.items() if tensor.ndim == 2]

    def deltas(self, name: str) -> list[np.ndarray]:
        return [model[name].astype(np.float64) - self.base[name].astype(np.float64) for model in self.models]

    def fused(self, method: Any) -> dict[str, np.ndarray]:
        models, base = ([{n: torch.from_numpy(t.copy()) for n, t in s.items()} for s in each]
                        for each in (self.models, [self.base]))  # fmt: skip
        return {name: tensor.numpy() for name, tensor in fuse(method, models, base[0]).items()}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    count = draw(st.sampled_from([3, 2, 5, 4, 1]))
    kinds = [[draw(st.sampled_from(KINDS)) for _ in shapes] for _ in range(count)]
    return Case(draw(st.sampled_from(sorted(DTYPES))), shapes, kinds, draw(st.integers(0, 2**32 - 1)))


def condition(values: np.ndarray) -> float:
    """How much directions above the null ones may magnify rounding; refuses spectra on the edge of being null."""
    top = float(values.max(initial=0.0))
    share = values[values > 0] / top if top else values[:0]
    assume(not ((share > 1e-9) & (share < 1e-4)).any())
    kept = share[share >= 1e-4]
    return 1.0 / float(kept.min(initial=1.0))


def gap(matrix: np.ndarray, count: int) -> float:
    """What a cut after `count` components magnifies; refuses cuts between equal singular values."""
    values = np.linalg.svd(matrix, compute_uv=False)
    if count <= 0 or count >= len(values) or values[0] == 0:
        return 1.0
    assume(values[count - 1] <= 1e-6 * values[0] or values[count - 1] - values[count] > 1e-3 * values[0])
    return float(values[0] / max(values[count - 1] - values[count], 1e-3 * values[0]))


def stacked(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """The condition of both polar factors."""
    worst = 1.0
    for side in (np.concatenate([part[0] for part in parts], 1), np.concatenate([part[2] for part in parts], 0)):
        if 0 not in side.shape:
            worst = max(worst, condition(np.linalg.svd(side, compute_uv=False)))
    return worst


def check(
    case: Case, got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], magnify: Mapping[str, float]
) -> None:
    for name, expected in wanted.items():
        assert str(got[name].dtype) == case.dtype
        assert got[name].shape == expected.shape
        size = max([1.0, *(float(abs(m[name]).max(initial=0.0)) for m in [case.base, *case.models]),
                    float(abs(expected).max(initial=0.0))])  # fmt: skip
        single, double = (1e-4, 1e-12) if name in case.matrices else (1e-6, 1e-12)
        bound = (single if case.dtype == "float32" else 4 * double * magnify.get(name, 1.0)) * size
        worst = float(abs(got[name].astype(np.float64) - expected).max(initial=0.0))
        assert worst <= bound, f"{name} {expected.shape}: off by {worst:.3g}, allowed {bound:.3g}"


def compare(case: Case, method: Any, oracle: Callable[[list[np.ndarray]], np.ndarray], magnify: dict[str, float],
            factor: float = 1.0) -> None:  # fmt: skip
    wanted = spectral.on_matrices(case.models, case.base, oracle, case.matrices, factor)
    check(case, case.fused(method), wanted, magnify)


@settings(**FUZZ)
@given(case=cases(), factor=st.sampled_from([1.0, 0.5, -1.0]))
def test_tsv_merging(case: Case, factor: float) -> None:
    magnify = {}
    for name in case.matrices:
        deltas = case.deltas(name)
        k = min(deltas[0].shape) // len(deltas)
        if k:
            cut = max(gap(delta, k) for delta in deltas)
            lowest = max(condition(np.linalg.svd(delta, compute_uv=False)[:k]) for delta in deltas)
            magnify[name] = cut * lowest * stacked([spectral.components(delta, k) for delta in deltas])
    compare(case, TsvMerging(scaling_factor=factor), spectral.tsvm, magnify, factor)


@settings(**FUZZ)
@given(case=cases(), factor=st.sampled_from([1.0, 1.5]))
def test_iso_c(case: Case, factor: float) -> None:
    magnify = {n: condition(np.linalg.svd(sum(case.deltas(n)), compute_uv=False)) for n in case.matrices}  # type: ignore[call-overload]
    compare(case, IsoC(scaling_factor=factor), spectral.iso_c, magnify, factor)


@settings(**FUZZ)
@given(case=cases(), fraction=st.sampled_from([0.8, 0.5, 0.0, 1.0, 0.3]))
def test_iso_cts(case: Case, fraction: float) -> None:
    magnify = {}
    for name in case.matrices:
        deltas = case.deltas(name)
        r, total = min(deltas[0].shape), spectral.total(deltas)
        s = spectral.cts_split(r, len(deltas), fraction)
        worst = gap(total, r - s) * condition(np.linalg.svd(total, compute_uv=False))
        common = spectral.components(total, r - s)
        parts = []
        for delta in deltas if s else ():
            rest = delta - common[0] @ (common[0].T @ delta)
            top = spectral.spectral_norm(delta)
            # A residual of rounding beside a task that is not small has no directions to compare.
            values = np.linalg.svd(rest, compute_uv=False)
            assume(not ((values > 1e-12 * max(top, 1e-300)) & (values < 1e-4 * top)).any())
            worst = max(worst, gap(rest, s // len(deltas))) if values[0] > 1e-6 * top else worst
            parts.append(spectral.components(rest, s // len(deltas), top))
        magnify[name] = worst * stacked([*parts, common])
    compare(case, IsoCts(common_space_fraction=fraction), lambda d: spectral.iso_cts(d, fraction), magnify)


@settings(**FUZZ)
@given(case=cases())
def test_wudi(case: Case) -> None:
    """By way of C, which squares the condition of the stacked tasks."""
    magnify = {}
    for name in case.matrices:
        rows = [delta / np.linalg.norm(delta) for delta in case.deltas(name) if (delta * delta).sum() >= 1e-12]
        if rows:
            magnify[name] = condition(np.linalg.svd(np.concatenate(rows), compute_uv=False)) ** 2
            assume(magnify[name] < 1e6)
    compare(case, Wudi(), spectral.wudi_minimum, magnify)


def of_the_spectrum(case: Case) -> dict[str, float]:
    """The condition of C on the directions above the floor of 1e-8; refuses spectra at the floor."""
    magnify = {}
    for name in case.matrices:
        values = np.linalg.eigvalsh(spectral.interference(case.deltas(name))[0])
        assume(not ((values > 1e-13) & (values < 1e-6)).any())
        magnify[name] = 1.0 / float(values[values > 1e-6].min(initial=1.0))
    return magnify


def above_the_floor(deltas: list[np.ndarray], factors: list[float], init: str) -> np.ndarray:
    """The oracle's closed form with f = 0 at the floor: there it divides what is left of D by 1e-8, and returns a
    difference of the last bit in one task as a change of the size of the task."""
    live = int((np.linalg.eigvalsh(spectral.interference(deltas)[0]) > 1e-8).sum())
    return spectral.closed_form(deltas, factors[:live], init)


@settings(**FUZZ)
@given(case=cases(), t=st.sampled_from([3.0, 300.0, 0.0]), r=st.sampled_from([0.5, 0.85, 1.0, 0.0, 0.65]),
       init=st.sampled_from(["sum", "mean", "zero"]))  # fmt: skip
def test_swudi(case: Case, t: float, r: float, init: Any) -> None:
    magnify = of_the_spectrum(case)
    for name in case.matrices:
        check_cut(case.deltas(name), lambda values: math.ceil(r * len(values)))

    def oracle(deltas: list[np.ndarray]) -> np.ndarray:
        values = spectral.spectrum(deltas)
        factors = [1.0 - math.exp(-value * t) for value in values[: math.ceil(r * len(values))]]
        if min(values) > 1e-8:
            np.testing.assert_array_equal(spectral.swudi(deltas, t=t, r=r, init=init),
                                          spectral.closed_form(deltas, factors, init))  # fmt: skip
        return above_the_floor(deltas, factors, init)

    compare(case, Swudi(time=t, fraction=r, init=init), oracle, magnify)


@settings(**FUZZ)
@given(case=cases(), init=st.sampled_from(["sum", "mean", "zero"]))
def test_aswudi(case: Case, init: Any) -> None:
    magnify = of_the_spectrum(case)
    for name in case.matrices:
        check_cut(case.deltas(name), lambda values: spectral.aswudi_count(list(values)))

    def oracle(deltas: list[np.ndarray]) -> np.ndarray:
        values = spectral.spectrum(deltas)
        if min(values) > 1e-8:
            return spectral.aswudi(deltas, init=init)
        return above_the_floor(deltas, [1.0] * spectral.aswudi_count(values), init)

    compare(case, Aswudi(init=init), oracle, magnify)


def check_cut(deltas: list[np.ndarray], count: Callable[[np.ndarray], int]) -> None:
    """Refuses a cut between equal eigenvalues, and a number of directions that rounding decides."""
    values = np.array(spectral.spectrum(deltas))
    k = count(values)
    size = float(np.sqrt(values).sum() ** 2 / values.sum())
    assume(abs(size - round(size)) > 1e-6)
    assume(k <= 0 or k >= len(values) or values[k - 1] < 1e-6 or values[k - 1] - values[k] > 1e-3 * values[0])


@settings(**FUZZ)
@given(case=cases(), alpha=st.sampled_from([0.1, 1.0, 0.5]), factor=st.sampled_from([1.0, 0.3]))
def test_svc(case: Case, alpha: float, factor: float) -> None:
    inner: Any = TaskArithmetic(scaling_factor=factor)
    wanted = loops.task_arithmetic(case.models, case.base, factor)
    magnify = {}
    for name in case.matrices:
        deltas = case.deltas(name)
        merged = factor * spectral.total(deltas)
        left, values, _ = spectral.components(merged)
        # Equal singular values leave their vectors open, and the factors hang on these.
        assume(all(a - b > 1e-3 * values[0] for a, b in itertools.pairwise(values)))
        energies = [
            float(
                np.square(
                    left.T @ d,
                )
                .sum(1)
                .min(initial=1.0)
            )
            for d in deltas
            if left.size
        ]
        assume(all(energy == 0 or energy > 1e-6 or energy < 1e-20 for energy in energies))
        magnify[name] = 1e3 * condition(np.linalg.svd(merged, compute_uv=False))
        wanted[name] = case.base[name] + spectral.svc(merged, deltas, alpha)
    check(case, case.fused(Svc(inner=inner, alpha=alpha)), wanted, magnify)


@settings(**FUZZ)
@given(case=cases(), ratio=st.sampled_from([0.5, 0.08, 1.0, 0.34, 0.0]), factor=st.sampled_from([1.0, 2.3, 0.0]))
def test_cart(case: Case, ratio: float, factor: float) -> None:
    magnify = {}
    for name in case.matrices:
        deltas = case.deltas(name)
        k = int(ratio * min(deltas[0].shape))
        residuals = [delta - spectral.mean(deltas) for delta in deltas]
        if any(np.abs(each).max() > 1e-9 for each in residuals):
            magnify[name] = 10 * max(gap(each, k) for each in residuals)

    def oracle(deltas: list[np.ndarray]) -> np.ndarray:
        k = int(ratio * min(deltas[0].shape))
        return spectral.cart(deltas, k=k, scaling_factor=factor)

    compare(case, Cart(rank_ratio=ratio, residual_scaling=factor), oracle, magnify)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_lines(dtype: str, alpha: float | None) -> None:
    """Loop-level: the factor of each tensor by its place, the norms by entries."""
    rng = np.random.default_rng(1)
    places = {"embed.w": None, "enc.0.w": 0.0, "enc.1.w": 0.5, "enc.2.b": 1.0, "dec.0.w": 1.0, "norm.w": None}
    shapes: dict[str, tuple[int, ...]] = dict(zip(places, [(4, 3), (3, 5), (7,), (2, 3, 4), (5, 1), ()], strict=True))
    base, *models = [
        {n: np.asarray(rng.standard_normal(s), DTYPES[dtype]) for n, s in shapes.items()} for _ in range(4)
    ]
    tasks = merged = 0.0
    for name in places:
        total = sum(model[name].astype(np.float64) - base[name] for model in models)
        tasks += float(np.abs(total).sum())
        merged += float(np.abs(0.4 * total).sum())
    used = tasks / merged / len(models) if alpha is None else alpha
    inner: Any = TaskArithmetic(scaling_factor=0.4)
    stored = [{n: torch.from_numpy(t.copy()) for n, t in each.items()} for each in [base, *models]]
    got = fuse(Lines(inner=inner, alpha=alpha, beta=0.7), stored[1:], stored[0])
    for name, place in places.items():
        factor = used if place is None else used + 0.7 * place
        delta = sum(model[name].astype(np.float64) - base[name] for model in models)
        wanted = base[name] + factor * 0.4 * delta
        tolerance = 1e-12 if dtype == "float64" else 2e-6
        np.testing.assert_allclose(got[name].double().numpy(), wanted, rtol=tolerance, atol=tolerance)
