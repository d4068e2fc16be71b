"""Interpolation on spheres and Model Stock against worked numbers: golden vectors G4 and G13; laws."""

from __future__ import annotations

import loops
import loops_spherical as spherical
import numpy as np
import pytest

A = [1.0, 0.0, 2.0, -1.0]
B = [0.0, 1.0, 1.0, 3.0]
C = [2.0, 1.0, 0.0, 1.0]


def model(row: list[float]) -> dict[str, np.ndarray]:
    return {"w": np.array(row)}


def random_models(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"b.w": (5, 3), "a.w": (2, 3, 4), "c": (7,), "s": ()}
    return [{name: np.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()} for _ in range(count)]


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray], tolerance: float = 1e-12) -> None:
    assert set(left) == set(right)
    for name in left:
        assert left[name].shape == right[name].shape
        np.testing.assert_allclose(left[name], right[name], rtol=tolerance, atol=tolerance)


def test_slerp() -> None:
    """G4."""
    pair = [model(A), model(B)]
    assert spherical.dot(spherical.unit(A), spherical.unit(B)) == pytest.approx(-0.123091, abs=1e-6)
    half = [0.755106, 0.755106, 2.265318, 1.510212]
    assert spherical.slerp(pair, t=0.5)["w"] == pytest.approx(half, abs=1e-6)
    third = [0.933955, 0.490387, 2.358297, 0.537207]
    assert spherical.slerp(pair, t=0.3)["w"] == pytest.approx(third, abs=1e-6)
    assert spherical.nuslerp(pair, weights=[0.7, 0.3])["w"] == pytest.approx(third, abs=1e-6)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_mlerp(scope: str) -> None:
    """G4."""
    pair = [model(A), model(B)]
    largest = [0.856349, 0.856349, 2.569047, 1.712698]
    assert spherical.mlerp(pair, scope=scope)["w"] == pytest.approx(largest, abs=1e-6)
    mean = [0.744402, 0.744402, 2.233207, 1.488804]
    assert spherical.mlerp(pair, scope=scope, norm_mode="mean")["w"] == pytest.approx(mean, abs=1e-6)


def test_many_on_the_sphere() -> None:
    """G4."""
    pair = [model(A), model(B)]
    uneven = [1.065348, 0.337205, 2.467901, -0.053733]
    assert spherical.multislerp(pair, weights=[0.7, 0.3])["w"] == pytest.approx(uneven, abs=1e-6)
    even = [0.888762, 0.656394, 2.433918, 1.080421]
    assert spherical.multislerp(pair, weights=[0.5, 0.5])["w"] == pytest.approx(even, abs=1e-6)
    assert spherical.karcher(pair)["w"] == pytest.approx(even, abs=1e-6)


def test_equal_norms() -> None:
    """G4, L27."""
    pair = [model([1.0, 2.0, 2.0]), model([2.0, -1.0, 2.0])]
    expected = [1.765045, 0.588348, 2.353394]
    assert spherical.slerp(pair, t=0.5)["w"] == pytest.approx(expected, abs=1e-6)
    assert spherical.mlerp(pair)["w"] == pytest.approx(expected, abs=1e-6)


def test_model_stock() -> None:
    """G13."""
    base = model([0.0] * 4)
    assert spherical.pairwise_cosine([A, B, C]) == pytest.approx(0.178647, abs=1e-6)
    assert spherical.stock_ratio(spherical.pairwise_cosine([A, B, C]), 3) == pytest.approx(0.394860, abs=1e-6)
    got = spherical.model_stock([model(A), model(B), model(C)], base)["w"]
    assert got == pytest.approx([0.394860, 0.263240, 0.394860, 0.394860], abs=1e-6)
    assert spherical.pairwise_cosine([A, B]) == pytest.approx(-0.123091, abs=1e-6)
    assert spherical.stock_ratio(spherical.pairwise_cosine([A, B]), 2) == pytest.approx(-0.280740, abs=1e-6)
    got = spherical.model_stock([model(A), model(B)], base)["w"]
    assert got == pytest.approx([-0.140370, -0.140370, -0.421109, -0.280740], abs=1e-6)


def test_model_stock_laws() -> None:
    """Equal changes give the mean, orthogonal and opposite ones the base; rows are treated apart."""
    first, base = random_models(2)
    same(spherical.model_stock([first] * 3, base), first)
    zero = model([0.0, 0.0])
    same(spherical.model_stock([model([1.0, 0.0]), model([0.0, 2.0])], zero), zero)
    same(spherical.model_stock([model([1.0, 0.0]), model([-1.0, 0.0])], zero), zero)
    same(spherical.model_stock([base, base], base), base)
    stacked = [{"w": np.array([A, C])}, {"w": np.array([B, C])}]
    got = spherical.model_stock(stacked, {"w": np.zeros((2, 4))}, filter_wise=True)["w"]
    assert got[0] == pytest.approx([-0.140370, -0.140370, -0.421109, -0.280740], abs=1e-6)
    assert got[1] == pytest.approx(C, abs=1e-12)


def test_ends_and_symmetry() -> None:
    """SLERP: t = 0 and t = 1 are the ends, (a, b, t) is (b, a, 1−t), opposite and zero vectors blend linearly."""
    a, b = random_models(2)
    same(spherical.slerp([a, b], t=0.0), a)
    same(spherical.slerp([a, b], t=1.0), b)
    same(spherical.slerp([a, b], t=0.3), spherical.slerp([b, a], t=0.7))
    opposite = spherical.slerp([model([1.0, 2.0]), model([-2.0, -4.0])], t=0.25)
    same(opposite, model([0.25, 0.5]))
    same(spherical.slerp([model([0.0, 0.0]), model([2.0, 4.0])], t=0.25), model([0.5, 1.0]))


@pytest.mark.parametrize("by", ["flat", "row", "column"])
def test_nuslerp(by: str) -> None:
    """On raw tensors, and about a base; every row or column by itself."""
    a, b, base = random_models(3)
    change = [{name: each[name] - base[name] for name in base} for each in (a, b)]
    moved = spherical.nuslerp([a, b], base, weights=[3.0, 1.0], by=by)
    plain = spherical.nuslerp(change, weights=[3.0, 1.0], by=by)
    same(moved, {name: base[name] + plain[name] for name in base})
    if by == "flat":
        same(plain, spherical.slerp(change, t=0.25))
    else:
        line = (slice(None), 1) if by == "column" else (1,)
        piece = [model(list(each["b.w"][line])) for each in change]
        assert plain["b.w"][line] == pytest.approx(spherical.slerp(piece, t=0.25)["w"], abs=1e-14)


def test_equal_models() -> None:
    """L1, L2: N equal models, and one alone, come out as they are."""
    (a,) = random_models(1)
    for group in ([a], [a] * 3):
        same(spherical.mlerp(group), a)
        same(spherical.mlerp(group, scope="tensor", norm_mode="mean"), a)
        same(spherical.multislerp(group), a)
        same(spherical.karcher(group), a)
    same(spherical.slerp([a, a], t=0.3), a)


def test_two_equal_weights() -> None:
    """L27: Multi-SLERP is the Karcher mean of two; both have the direction of the middle and the mean norm."""
    a, b = random_models(2)
    same(spherical.multislerp([a, b]), spherical.karcher([a, b]))
    base = random_models(3)[2]
    about = spherical.multislerp([a, b], base)
    change = [{name: each[name] - base[name] for name in base} for each in (a, b)]
    apart = spherical.multislerp(change)
    same(about, {name: base[name] + apart[name] for name in base})


def test_karcher_is_stationary() -> None:
    """After enough steps the mean of the logarithms vanishes; the projection of Multi-SLERP is another mean."""
    rows = [A, B, C]
    units = [spherical.unit(row) for row in rows]
    point = spherical.unit(spherical.karcher_vectors(rows, iterations=100, tolerance=1e-14))
    step = spherical.blend([1 / 3] * 3, [spherical.logarithm(point, each) for each in units])
    assert spherical.norm(step) < 1e-8
    assert spherical.unit(spherical.karcher_vectors(rows)) == pytest.approx(point, abs=1e-4)
    assert spherical.multislerp_vectors(rows) != pytest.approx(spherical.karcher_vectors(rows), abs=1e-3)


def test_directions_that_cancel() -> None:
    """Two opposite vectors blend linearly, more are an error."""
    assert spherical.multislerp_vectors([[1.0, 0.0], [-3.0, 0.0]]) == [-1.0, 0.0]
    assert spherical.karcher_vectors([[1.0, 0.0], [-3.0, 0.0]]) == [-1.0, 0.0]
    balanced = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    for merge in (spherical.multislerp_vectors, spherical.karcher_vectors):
        with pytest.raises(ValueError, match="cancel"):
            merge(balanced)


def test_scopes_differ() -> None:
    """One norm for the model keeps the proportions of the plain mean between tensors."""
    group = random_models(3)
    whole, mean = spherical.mlerp(group), loops.mean(group)
    ratios = [float(np.mean(whole[name] / mean[name])) for name in mean]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-12)
    lengths = [spherical.norm(spherical.flat(each["b.w"])) for each in group]
    tensor = spherical.mlerp(group, scope="tensor")["b.w"]
    assert spherical.norm(spherical.flat(tensor)) == pytest.approx(max(lengths), rel=1e-12)
