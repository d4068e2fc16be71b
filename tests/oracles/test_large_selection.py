"""The trimming of TIES-Merging keeps exactly the entries that a full stable sort keeps, on millions of entries (L40).

One model on a zero base with λ = 1 makes the merged model the trimmed delta itself, so that what was kept is read off
exactly. The inputs are those on which a threshold estimated from a sample, from coarse bins or in less precision than
the inputs would be off by a few entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fusion_bench import TiesMerging, fuse

Arrays = dict[str, np.ndarray]
DENSITIES = [0.2, 0.0317, 0.55]


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 numbers, as float32."""
    return torch.from_numpy(values.astype(np.float32)).bfloat16().float().numpy()


def scales(rng: np.random.Generator) -> Arrays:
    """Tensors whose magnitudes are orders apart, one of them zero, one of constant magnitude."""
    return {
        "z.embedding": (1e-6 * rng.standard_normal((1500, 600))).astype(np.float32),
        "a.attention": rng.standard_normal((900, 1000)).astype(np.float32),
        "m.zero": np.zeros((700, 1000), np.float32),
        "m.norm": (1e3 * rng.standard_normal(5000)).astype(np.float32),
        "B.head": (1e-3 * rng.standard_normal((800, 700))).astype(np.float32),
        "_scalar": np.array(-0.4, np.float32),
        "c.signs": (0.01 * rng.choice([-1, 1], size=(40_000, 1))).astype(np.float32),
    }


def quantised(rng: np.random.Generator) -> Arrays:
    """Fifteen magnitudes over 3.1 million entries: every threshold has more than a hundred thousand equals."""
    return {
        name: np.asarray(rng.integers(1, 16, size=shape) * rng.choice([-1, 1], size=shape) / 64, np.float32)
        for name, shape in {"z": (1200, 1000), "Q.k": (999, 1001), "a": (900_001,), "_": ()}.items()
    }


def hidden_stretch(rng: np.random.Generator) -> Arrays:
    """Three million tiny values with the large ones in one stretch of 1000, which few samples would meet."""
    tiny = 1e-7 * rng.standard_normal(3_000_000)
    tiny[2_345_678:2_346_678] = rng.standard_normal(1000)
    return {"huge": tiny.astype(np.float32), "after": np.full(300_000, 1e-7, np.float32)}


def bfloat16_deltas(rng: np.random.Generator) -> Arrays:
    """Differences of fine-tuned bfloat16 weights: a few thousand distinct magnitudes, most of them zero or tied."""
    out: Arrays = {}
    for name, rows in (("w.2", 1500), ("w.10", 1100), ("W", 400)):
        start = bfloat16(0.05 * rng.standard_normal((rows, 1024)))
        out[name] = bfloat16(start + 3e-4 * rng.standard_normal(start.shape)) - start
    return out


def near_equal(rng: np.random.Generator) -> Arrays:
    """Magnitudes in neighbouring floats of one binary order, in which coarse bins hold all of them at once."""
    bits = np.float32(0.75).view(np.int32) + rng.integers(0, 4000, size=1_500_000, dtype=np.int32)
    values = bits.view(np.float32) * rng.choice(np.array([-1, 1], np.float32), size=bits.size)
    return {"one": values[:500_000].reshape(500, 1000), "two": values[500_000:]}


def double_precision(rng: np.random.Generator) -> Arrays:
    """Magnitudes that only float64 tells apart: in float32 all of them are 1."""
    values = 1.0 + 1e-13 * rng.permutation(600_000)
    return {"one": values[:200_000] * rng.choice([-1.0, 1.0], size=200_000), "two": values[200_000:].reshape(400, -1)}


def extremes(rng: np.random.Generator) -> Arrays:
    """Subnormal magnitudes, the smallest normal ones and the largest finite ones side by side."""
    smallest = np.float32(1e-45)
    subnormal = (rng.integers(1, 300, size=400_000).astype(np.int32)).view(np.float32)
    assert subnormal.min() == smallest
    large = np.full(50_000, np.finfo(np.float32).max, np.float32)
    large[::2] = np.nextafter(large[0], np.float32(0))
    normal = np.full(50_000, np.finfo(np.float32).tiny, np.float32)
    return {"b": subnormal, "a": large * rng.choice([-1, 1], size=50_000).astype(np.float32), "c": -normal}


BUILDERS: list[Callable[[np.random.Generator], Arrays]] = [
    scales,
    quantised,
    hidden_stretch,
    bfloat16_deltas,
    near_equal,
    double_precision,
    extremes,
]


def ranked(values: np.ndarray) -> np.ndarray:
    """All positions by falling magnitude, of equal ones the lower first: a full stable sort."""
    return np.argsort(-np.abs(values), kind="stable")


def whole(arrays: Arrays) -> np.ndarray:
    """The tensors in the order of their names, as one vector."""
    return np.concatenate([arrays[name].reshape(-1) for name in sorted(arrays)])


def trim(arrays: Arrays, density: float, scope: str, count: str = "exact") -> Arrays:
    """What the library keeps of a delta."""
    model = {name: torch.from_numpy(array) for name, array in arrays.items()}
    base = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    method = TiesMerging(scaling_factor=1.0, density=density, merge_func="sum", scope=scope, count=count)
    merged = fuse(method, [model], base)
    for name, array in arrays.items():
        assert merged[name].numpy().dtype == array.dtype, name
    return {name: tensor.numpy() for name, tensor in merged.items()}


def assert_kept(got: np.ndarray, values: np.ndarray, order: np.ndarray, k: int, label: str) -> None:
    """Exactly the first `k` positions of `order` survive, unchanged."""
    expected = np.zeros_like(values)
    expected[order[:k]] = values[order[:k]]
    wrong = np.flatnonzero(got != expected)
    assert wrong.size == 0, (
        f"{label}: {wrong.size} of {values.size} entries differ, the first at {wrong[0]}: "
        f"got {got[wrong[0]]!r}, wanted {expected[wrong[0]]!r}; kept {np.count_nonzero(got)}, wanted {k}"
    )


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_one_threshold_for_the_whole_model(build: Callable[[np.random.Generator], Arrays]) -> None:
    arrays = build(np.random.default_rng(20240))
    values = whole(arrays)
    order = ranked(values)
    nonzero = np.count_nonzero(values)
    for density in DENSITIES:
        k = int(density * values.size)
        got = whole(trim(arrays, density, "model"))
        assert_kept(got, values, order, k, f"density {density}")
        assert np.count_nonzero(got) == min(k, nonzero)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_one_threshold_for_each_tensor(build: Callable[[np.random.Generator], Arrays]) -> None:
    arrays = build(np.random.default_rng(20241))
    got = trim(arrays, 0.2, "tensor")
    for name, array in arrays.items():
        values = array.reshape(-1)
        k = int(0.2 * values.size)
        assert_kept(got[name].reshape(-1), values, ranked(values), k, name)
        assert np.count_nonzero(got[name]) == min(k, np.count_nonzero(values)), name


@pytest.mark.parametrize("build", [scales, quantised, bfloat16_deltas, near_equal, double_precision])
@pytest.mark.parametrize("density", [0.2, 0.45])
def test_the_count_of_the_authors(build: Callable[[np.random.Generator], Arrays], density: float) -> None:
    """Every entry that is not below the (d − int(k·d))-th smallest magnitude, all ties with it included."""
    arrays = build(np.random.default_rng(20242))
    values = whole(arrays)
    magnitudes = np.abs(values)
    rank = values.size - int(density * values.size)
    threshold = np.partition(magnitudes, rank - 1)[rank - 1]
    got = whole(trim(arrays, density, "model", "authors"))
    assert np.array_equal(got, np.where(magnitudes >= threshold, values, 0))


def test_every_count_around_a_block_of_equal_magnitudes() -> None:
    """The number of kept entries moves one by one through a block of ties that spans three tensors."""
    rng = np.random.default_rng(7)
    arrays = {name: np.full(70_000, 0.5, np.float32) for name in ("c", "a", "b")}
    arrays["b"][::7] *= -1
    arrays["a"][rng.permutation(70_000)[:1000]] = 2.0
    arrays["c"][rng.permutation(70_000)[:1000]] = 0.125
    values = whole(arrays)
    order = ranked(values)
    for k in (999, 1000, 1001, 69_999, 70_000, 70_001, 140_001, 208_999, 209_000, 209_001, 209_999):
        density = (k + 0.5) / values.size
        assert int(density * values.size) == k
        assert_kept(whole(trim(arrays, density, "model")), values, order, k, f"{k} of {values.size}")


def test_a_model_has_a_threshold_of_its_own() -> None:
    """Three models of different scale at once; quantised positive values keep the sum exact."""
    rng = np.random.default_rng(11)
    shapes = {"z": (700, 500), "a": (250_000,), "K": (13, 11, 700)}
    models = [
        {name: (scale * rng.integers(0, 64, size=shape)).astype(np.float32) for name, shape in shapes.items()}
        for scale in (2.0**-9, 1.0, 2.0**-3)
    ]
    expected = np.zeros(whole(models[0]).size, np.float32)
    for model in models:
        values = whole(model)
        chosen = ranked(values)[: int(0.2 * values.size)]
        expected[chosen] += values[chosen]
    states = [{name: torch.from_numpy(array) for name, array in model.items()} for model in models]
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    merged = fuse(TiesMerging(scaling_factor=1.0, threshold=20.0), states, base)
    assert np.array_equal(whole({name: tensor.numpy() for name, tensor in merged.items()}), expected)


@pytest.mark.parametrize(("threads", "reverse"), list(itertools.product([1, 2], [False, True])))
def test_neither_threads_nor_the_order_of_keys_matter(threads: int, reverse: bool) -> None:
    """Among ties, which entries stay is a matter of names and positions only."""
    arrays = quantised(np.random.default_rng(3))
    values = whole(arrays)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = trim({name: arrays[name] for name in sorted(arrays, reverse=reverse)}, 0.2, "model")
    finally:
        torch.set_num_threads(before)
    assert_kept(whole(got), values, ranked(values), int(0.2 * values.size), f"{threads} threads, reverse {reverse}")
