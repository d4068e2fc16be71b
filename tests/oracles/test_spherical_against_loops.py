"""Interpolation on spheres, Model Stock, nearswap, RAM and ExPO against the coordinate-by-coordinate oracles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import loops_masks as masks
import loops_spherical as spherical
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_against_loops import FUZZ, Case, cases, check

from fusion_bench import (
    Expo,
    Karcher,
    Mlerp,
    ModelStock,
    Multislerp,
    Nearswap,
    Nuslerp,
    Ram,
    Slerp,
    fuse,
)

Model = dict[str, np.ndarray]
POSITIVE = [0.25, 0.5, 1.0, 1.5, 2.0]
# 1/sin φ where |cos φ| = 0.9995: the most that spherical coefficients enlarge their inputs.
STEEP = 64.0


def pair(case: Case) -> Case:
    """The first two models; the one twice where there is one."""
    return Case(case.base, (case.models * 2)[:2], case.dtype, (case.shuffles * 2)[:3])


def one(case: Case) -> Case:
    return Case(case.base, case.models[:1], case.dtype, case.shuffles[:2])


def rows(models: Sequence[Model], base: Model | None, name: str, by: str = "flat") -> list[list[list[float]]]:
    """The vectors of one tensor, by piece and model."""
    wide = [model[name].astype(np.float64) if base is None else model[name] - base[name] for model in models]
    return [list(piece) for piece in zip(*(spherical.pieces(np.asarray(each), by) for each in wide), strict=True)]


def undecided(models: Sequence[Model], base: Model | None, weights: Sequence[float] | None = None) -> bool:
    """Whether a threshold of a definition falls so near that rounding decides, or directions nearly cancel."""
    shares = spherical.shares(weights, len(models))
    for name in models[0]:
        for vectors in rows(models, base, name):
            units = [spherical.unit(each) for each in vectors]
            if any(map(any, units)) and spherical.norm(spherical.blend(shares, units)) < 1e-2:
                return True
    return False


@settings(max_examples=120, **FUZZ)
@given(case=cases(), t=st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.9, 1.0]), with_base=st.booleans())
def test_slerp(case: Case, t: float, with_base: bool) -> None:
    case = pair(case)
    merged = fuse(Slerp(t=t), case.torch_models(), case.torch_base() if with_base else None)
    check(merged, spherical.slerp(case.models, t=t), case, STEEP)
    if t in (0.0, 1.0):
        for name, end in case.models[int(t)].items():
            assert np.array_equal(merged[name].numpy(), end), name


@settings(max_examples=60, **FUZZ)
@given(case=cases(), t=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_slerp_from_the_base(case: Case, t: float) -> None:
    case = one(case)
    merged = fuse(Slerp(t=t), case.torch_models(), case.torch_base())
    check(merged, spherical.slerp([case.base, *case.models], t=t), case, STEEP)


@pytest.mark.parametrize("of", ["models", "deltas"])
@pytest.mark.parametrize("by", ["tensor", "row", "column"])
@settings(max_examples=60, **FUZZ)
@given(case=cases(), weights=st.sampled_from([None, (0.7, 0.3), (3.0, 1.0), (0.0, 2.0), (1.5, -0.5)]))
def test_nuslerp(of: Any, by: Any, case: Case, weights: tuple[float, float] | None) -> None:
    case = pair(case)
    merged = fuse(Nuslerp(weights=weights, of=of, by=by), case.torch_models(), case.torch_base())
    expected = spherical.nuslerp(
        case.models,
        case.base if of == "deltas" else None,
        weights=weights or (1.0, 1.0),
        by="flat" if by == "tensor" else by,
    )
    check(merged, expected, case, 2 * STEEP)


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("norm", ["max", "mean"])
@settings(max_examples=60, **FUZZ)
@given(case=cases())
def test_mlerp(scope: Any, norm: Any, case: Case) -> None:
    merged = fuse(Mlerp(scope=scope, norm=norm), case.torch_models())
    expected = spherical.mlerp(case.models, scope=scope, norm_mode=norm)
    # How much the mean is stretched.
    flat = [[list(map(float, model[name].reshape(-1))) for model in case.models] for name in sorted(case.base)]
    whole = [[[entry for part in flat for entry in part[i]] for i in range(len(case.models))]]
    stretch = 1.0
    for vectors in flat if scope == "tensor" else whole:
        middle = spherical.norm(spherical.blend([1 / len(vectors)] * len(vectors), vectors))
        assume(middle == 0 or middle > 1e-6 * max(map(spherical.norm, vectors)))
        stretch = max(stretch, max(map(spherical.norm, vectors)) / middle if middle else 1.0)
    check(merged, expected, case, 2 * stretch)


@pytest.mark.parametrize("of", ["models", "deltas"])
@pytest.mark.parametrize(("method", "told"), [(Multislerp, "multislerp"), (Karcher, "karcher")])
@settings(max_examples=120, **FUZZ)
@given(case=cases(), data=st.data())
def test_means_on_the_sphere(of: Any, method: Any, told: str, case: Case, data: st.DataObject) -> None:
    count = len(case.models)
    given_ = data.draw(st.one_of(st.none(), st.lists(st.sampled_from(POSITIVE), min_size=count, max_size=count)))
    base = case.base if of == "deltas" else None
    assume(not undecided(case.models, base, given_))
    merge: Callable[..., list[float]] = getattr(spherical, f"{told}_vectors")

    def oracle(vectors: list[list[float]]) -> list[float]:
        # Vectors that are all zero have no direction and no length, however many there are.
        return merge(vectors, given_) if any(map(spherical.norm, vectors)) else vectors[0]

    expected = spherical.per_piece(case.models, base, "flat", oracle)
    merged = fuse(method(weights=given_, of=of), case.torch_models(), case.torch_base())
    check(merged, expected, case, 16.0)


@pytest.mark.parametrize("filter_wise", [False, True])
@settings(max_examples=120, **FUZZ)
@given(case=cases())
def test_model_stock(filter_wise: bool, case: Case) -> None:
    if len(case.models) < 2:
        case = pair(case)
    # Near −1/(N−1), the least mean cosine there is, t has a pole: rounding decides unless it is met exactly.
    count = len(case.models)
    steep = 1.0
    for name in case.base:
        for vectors in rows(case.models, case.base, name, "row" if filter_wise else "flat"):
            if vectors[0]:
                below = abs(1 + (count - 1) * spherical.pairwise_cosine(vectors))
                assume(below < 1e-13 or below > 1e-3)
                steep = max(steep, 1 / below**2 if below > 1e-3 else 1.0)
    merged = fuse(ModelStock(filter_wise=filter_wise), case.torch_models(), case.torch_base())
    check(merged, spherical.model_stock(case.models, case.base, filter_wise=filter_wise), case, 4 * count * steep)


@settings(max_examples=80, **FUZZ)
@given(case=cases(), t=st.sampled_from([0.0, 0.001, 0.25, 0.3, 1.0, 100.0]))
def test_nearswap(case: Case, t: float) -> None:
    case = one(case)
    merged = fuse(Nearswap(t=t), case.torch_models(), case.torch_base())
    check(merged, masks.nearswap(case.models[0], case.base, t=t), case, 4.0)


@settings(max_examples=80, **FUZZ)
@given(case=cases(), threshold=st.sampled_from([1e-5, 0.0, 0.3]))
def test_ram(case: Case, threshold: float) -> None:
    merged = fuse(Ram(threshold=threshold), case.torch_models(), case.torch_base())
    check(merged, masks.ram(case.models, case.base, threshold=threshold), case, len(case.models))


@settings(max_examples=60, **FUZZ)
@given(case=cases(), beta=st.sampled_from([0.0, 0.3, 0.5, -1.0, 2.0]))
def test_expo(case: Case, beta: float) -> None:
    mean = {name: np.mean([model[name].astype(np.float64) for model in case.models], axis=0) for name in case.base}
    merged = fuse(Expo(beta=beta), case.torch_models(), case.torch_base())
    check(merged, masks.expo(mean, case.base, beta=beta), case, 8.0)
    if beta == 0 and len(case.models) == 1:
        for name, model in case.models[0].items():
            assert np.array_equal(merged[name].numpy(), model), name


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("told", ["multislerp", "karcher"])
def test_nearly_parallel_models(told: str, size: float) -> None:
    """Fine-tuned models differ by little: angles of 1e-8 cost no accuracy, whatever the oracle makes of the vectors."""
    rng = np.random.default_rng(3)
    start = rng.standard_normal(5000)
    group = [{"w": start + size * rng.standard_normal(5000)} for _ in range(4)]
    weights = [0.4, 0.3, 0.2, 0.1]
    method: Any = {"multislerp": Multislerp, "karcher": Karcher}[told](weights=weights)
    merged = fuse(method, [{"w": torch.from_numpy(model["w"])} for model in group])["w"].numpy()
    expected = getattr(spherical, told)(group, weights=weights)["w"]
    assert np.abs(merged - expected).max() <= 1e-12 * np.abs(expected).max()


def test_many_slices_and_long_rows() -> None:
    """Tensors that span slices, rows that span blocks: the same coefficients as from whole vectors."""
    rng = np.random.default_rng(5)
    shapes = {"flat": (2_300_000,), "wide": (3, 40_000), "tall": (70_000, 17), "cube": (40, 30, 50)}
    base = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    group = [{name: base[name] + 0.1 * rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(2)]

    def angles(name: str, by: str) -> np.ndarray:
        a, b = (model[name] - base[name] for model in group)
        a, b = (each.reshape(1, -1) if by == "tensor" or a.ndim < 2 else each.reshape(len(each), -1) for each in (a, b))
        axis = 0 if by == "column" and base[name].ndim > 1 else 1
        cosine = (a * b).sum(axis, keepdims=True) / np.sqrt((a * a).sum(axis, keepdims=True))
        cosine = cosine / np.sqrt((b * b).sum(axis, keepdims=True))
        angle = np.arccos(cosine)
        both = np.sin(0.75 * angle) / np.sin(angle) * a + np.sin(0.25 * angle) / np.sin(angle) * b
        linear = np.abs(cosine) > 0.9995
        return base[name] + np.where(linear, 0.75 * a + 0.25 * b, both).reshape(base[name].shape)

    for by in ("tensor", "row", "column"):
        method = Nuslerp(weights=(3.0, 1.0), of="deltas", by=by)  # type: ignore[arg-type]
        states = [{name: torch.from_numpy(array) for name, array in model.items()} for model in group]
        merged = fuse(method, states, {name: torch.from_numpy(array) for name, array in base.items()}, threads=2)
        for name in shapes:
            assert np.abs(merged[name].numpy() - angles(name, by)).max() < 1e-12, (name, by)
