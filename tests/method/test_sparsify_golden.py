"""Golden vectors and laws of the methods that sparsify: DARE, DELLA, breadcrumbs, SCE, PCB-Merging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fusion_bench import Breadcrumbs, Dare, Della, PcbMerging, Sce, TaskArithmetic, TiesMerging, fuse
from fusion_bench.errors import ConfigError, NonFiniteError
from fusion_bench.ops import random, sparsify

R = [
    [0.9, -0.1, 0.3, -0.7, 0.05, 0.2, -0.4, 0.6, -0.8, 0.01],
    [-0.2, 0.8, 0.4, -0.6, -0.03, -0.9, 0.1, 0.5, 0.7, -0.02],
    [0.5, -0.3, -0.9, 0.1, 0.04, 0.25, 0.35, -0.65, 0.15, 0.55],
]
State = dict[str, torch.Tensor]
SUM = TaskArithmetic(scaling_factor=1.0)


def merge(method: Any, rows: list[list[float]]) -> list[float]:
    """The merged delta on a zero base, in float64."""
    models = [{"w": torch.tensor(row, dtype=torch.float64)} for row in rows]
    return fuse(method, models, {"w": torch.zeros(len(rows[0]), dtype=torch.float64)})["w"].tolist()


def pool(count: int = 3, dtype: torch.dtype = torch.float32) -> tuple[list[State], State]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"b": (40, 30), "a": (2, 3, 4), "s": (), "n": (0, 4), "e": (9, 1), "v": (33,)}
    base = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    models = [
        {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(dtype) for name, tensor in base.items()}
        for _ in range(count)
    ]
    return models, base


def same(left: State, right: State) -> None:
    assert all(torch.equal(left[name], right[name]) for name in right)


def injected(monkeypatch: pytest.MonkeyPatch, mask: list[int]) -> None:
    """Draws that keep exactly the entries of `mask`, whatever the probability."""
    drawn = torch.tensor([-(2**31) if keep else 2**31 - 1 for keep in mask], dtype=torch.int32)
    monkeypatch.setattr(random, "bits", lambda seed, model, tensor, start, stop: drawn[start:stop].clone())


# DARE


@pytest.mark.parametrize(("mode", "expected"), [("probability", [2, 0, 6, 0]), ("l1", [2.5, 0, 7.5, 0])])
def test_dare(mode: Any, expected: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """G16."""
    injected(monkeypatch, [1, 0, 1, 0])
    method = Dare(drop_rate=0.5, rescale_mode=mode, inner=SUM)
    assert merge(method, [[1.0, -2.0, 3.0, -4.0]]) == pytest.approx(expected, abs=1e-12)


def test_dare_without_rescaling(monkeypatch: pytest.MonkeyPatch) -> None:
    injected(monkeypatch, [1, 0, 1, 0])
    assert merge(Dare(drop_rate=0.9, rescale=False, inner=SUM), [[1.0, -2.0, 3.0, -4.0]]) == [1, 0, 3, 0]


@pytest.mark.parametrize("inner", [TaskArithmetic(), TiesMerging(), TiesMerging(scope="tensor", merge_func="mean")])
def test_dare_that_drops_nothing_is_its_inner_method(inner: Any) -> None:
    """L22, bit for bit."""
    models, base = pool()
    plain = fuse(inner, models, base)
    same(fuse(Dare(drop_rate=0.0, inner=inner), models, base), plain)
    same(fuse(Dare(drop_rate=0.0, rescale_mode="l1", inner=inner), models, base), plain)
    same(fuse(Della(density=1.0, inner=inner), models, base), plain)
    same(fuse(Breadcrumbs(density=1.0, inner=inner), models, base), plain)


def test_a_model_that_drops_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.drop_rate=1"):
        Dare(drop_rate=1.0)


def test_masks_belong_to_names_and_places() -> None:
    """The same in any order, among other models and tensors, in any slice; others with another seed or name."""
    _, base = pool(3)
    zero = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    named = {name: {key: torch.ones_like(tensor) for key, tensor in base.items()} for name in "abc"}
    method = Dare(drop_rate=0.5, inner=SUM)
    alone = {name: fuse(method, {name: named[name]}, zero) for name in named}
    together = fuse(method, dict(reversed(named.items())), zero)
    for key in base:
        assert torch.equal(together[key], alone["a"][key] + alone["b"][key] + alone["c"][key])
    fewer = fuse(method, {"b": {"b": named["b"]["b"]}}, {"b": zero["b"]})
    assert torch.equal(fewer["b"], alone["b"]["b"])
    assert not torch.equal(alone["a"]["b"], alone["b"]["b"])
    assert not torch.equal(fuse(method, {"a": named["a"]}, zero, seed=7)["b"], alone["a"]["b"])
    whole = random.bits(3, "a", "w", 0, 600_000).clone()
    for start, stop in ((0, 5), (262_143, 262_146), (524_288, 600_000), (17, 300_001)):
        assert torch.equal(random.bits(3, "a", "w", start, stop), whole[start:stop])


def test_the_draws_are_fair() -> None:
    """Every bit of a draw is set half of the time; neighbours, tensors and models are independent."""
    count = 2**20
    first = random.bits(0, "a", "w", 0, count).clone()
    others = [random.bits(0, "b", "w", 0, count).clone(), random.bits(0, "a", "v", 0, count).clone(), first.roll(1)]
    for bit in range(32):
        ones = int(((first >> bit) & 1).sum())
        assert abs(ones - count / 2) < 5 * np.sqrt(count) / 2, bit
    for other in others:
        agreeing = int(((first ^ other) >= 0).sum())
        assert abs(agreeing - count / 2) < 5 * np.sqrt(count) / 2


# The mean and the variance of what is kept.


def moments(method: Callable[[], Any], change: torch.Tensor, runs: int) -> tuple[np.ndarray, np.ndarray]:
    base = {"w": torch.zeros_like(change)}
    kept = np.stack([fuse(method(), [{"w": change}], base, seed=seed)["w"].numpy() for seed in range(runs)])
    return kept.mean(0), kept.var(0)


@pytest.mark.parametrize("drop_rate", [0.5, 0.9, 0.1])
def test_dare_is_unbiased(drop_rate: float) -> None:
    """L49: the mean is τ within four standard errors, the variance p/(1−p)·τ²."""
    change = torch.tensor(R[0], dtype=torch.float64)
    runs = 600
    mean, variance = moments(lambda: Dare(drop_rate=drop_rate, inner=SUM), change, runs)
    expected = drop_rate / (1 - drop_rate) * change.numpy() ** 2
    assert np.all(np.abs(mean - change.numpy()) <= 4 * np.sqrt(expected / runs))
    np.testing.assert_allclose(variance.mean(), expected.mean(), rtol=0.2)


def test_della_is_unbiased() -> None:
    """L49: likewise, with the probability of each entry."""
    change = torch.tensor(R[0], dtype=torch.float64)
    runs = 600
    mean, variance = moments(lambda: Della(density=0.5, epsilon=0.15, inner=SUM), change, runs)
    chance = sparsify.keep_probabilities(change.view(1, -1), 0.5, 0.15).numpy()[0]
    expected = (1 - chance) / chance * change.numpy() ** 2
    assert np.all(np.abs(mean - change.numpy()) <= 4 * np.sqrt(expected / runs))
    np.testing.assert_allclose(variance.mean(), expected.mean(), rtol=0.2)


@pytest.mark.parametrize("density", [0.3, 0.5])
def test_the_share_that_is_kept(density: float) -> None:
    """Over a million entries, DARE and DELLA keep the density within five standard errors."""
    change, base = {"w": torch.ones(1000, 1000)}, {"w": torch.zeros(1000, 1000)}
    for method in (Dare(drop_rate=1 - density, inner=SUM), Della(density=density, epsilon=0.2, inner=SUM)):
        kept = int((fuse(method, [change], base)["w"] != 0).sum())
        assert abs(kept - density * 1e6) < 5 * np.sqrt(1e6 * density * (1 - density))


# DELLA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_della_probabilities(dtype: torch.dtype) -> None:
    """G15; the first of equal magnitudes is the larger; a row of one entry has the density."""
    rows = torch.tensor([R[0], [0.5, -0.5] * 5], dtype=dtype)
    expected = [0.65, 0.416667, 0.483333, 0.583333, 0.383333, 0.45, 0.516667, 0.55, 0.616667, 0.35]
    chances = sparsify.keep_probabilities(rows, 0.5, 0.15)
    assert chances[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert chances[1].tolist() == pytest.approx(np.linspace(0.65, 0.35, 10), abs=1e-12)
    assert chances.mean(1).tolist() == pytest.approx([0.5, 0.5], abs=1e-12)
    assert sparsify.keep_probabilities(rows[:, :1], 0.5, 0.15).tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize("mode", ["probability", "l1"])
def test_della_without_slope_is_dare(mode: Any) -> None:
    """L23, more than in distribution: they draw the same."""
    models, base = pool()
    for density in (0.5, 0.3):
        dare = fuse(Dare(drop_rate=1 - density, rescale_mode=mode), models, base)
        della = fuse(Della(density=density, epsilon=0.0, rescale_mode=mode, inner=TaskArithmetic()), models, base)
        for name in base:
            assert torch.equal(dare[name] == base[name], della[name] == base[name])
            torch.testing.assert_close(della[name], dare[name], rtol=1e-6, atol=1e-6)


def test_della_refuses_probabilities_outside_of_0_to_1() -> None:
    for density, epsilon in ((0.1, 0.15), (0.9, 0.1), (0.25, 0.25)):
        with pytest.raises(ConfigError, match=r"method\.density=.* with method\.epsilon="):
            Della(density=density, epsilon=epsilon)


# Breadcrumbs

SPARSE = [
    (0.5, 0.1, [0.5, 0.5, 0.7, -1.3, 0, 0, -0.05, 0.45, -0.1, 0.55]),
    (0.5, 0.01, [1.4, 0.8, -0.9, -1.3, 0, -0.9, -0.05, 0.45, -0.1, 0.55]),
    (0.6, 0.3, [0.3, -0.4, 0.7, -0.5, 0.02, 0.45, 0.05, 1.1, 0.15, 0]),
]


@pytest.mark.parametrize(("density", "gamma", "expected"), SPARSE)
def test_breadcrumbs(density: float, gamma: float, expected: list[float]) -> None:
    """G15."""
    assert merge(Breadcrumbs(density=density, gamma=gamma, inner=SUM), R) == pytest.approx(expected, abs=1e-6)


def test_breadcrumbs_drops_fewer_outliers_where_there_is_no_room() -> None:
    assert merge(Breadcrumbs(density=0.9, gamma=0.3, inner=SUM), R[:1]) == [0, *R[0][1:]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_breadcrumbs_counts_exactly_in_large_tensors(dtype: torch.dtype) -> None:
    """Tensors of several slices, of many equal magnitudes and mostly zeros, against a stable sort."""
    rng = np.random.default_rng(5)
    arrays = {
        "many_ties": rng.integers(-8, 9, size=1_500_000) / 8,
        "normal": rng.standard_normal((1300, 1001)),
        "sparse": rng.standard_normal(1_200_000) * (rng.random(1_200_000) < 0.1),
        "small": rng.standard_normal(999),
    }
    model = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
    base = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    merged = fuse(Breadcrumbs(density=0.3, gamma=0.05, inner=SUM), [model], base)
    for name, tensor in model.items():
        flat = tensor.reshape(-1).numpy()
        order = np.argsort(-np.abs(flat), kind="stable")
        outliers, keep = int(0.05 * flat.size), int(0.3 * flat.size)
        expected = np.zeros_like(flat)
        chosen = order[outliers : outliers + keep]
        expected[chosen] = flat[chosen]
        assert np.array_equal(merged[name].reshape(-1).numpy(), expected), name


# SCE

SELECTED = [
    (1.0, [0.721654, 0.8, -0.9, -0.648521, 0.045541, -0.9, 0.207823, 0.548521, 0.462789, 0.250768]),
    (0.5, [0, 0.8, -0.9, 0, 0, -0.9, 0, 0.532665, 0.493979, 0]),
]


@pytest.mark.parametrize(("topk", "expected"), SELECTED)
def test_sce(topk: float, expected: list[float]) -> None:
    """G14."""
    assert merge(Sce(select_topk=topk), R) == pytest.approx(expected, abs=1e-6)


def test_sce_without_variance() -> None:
    """One model and equal models: themselves with all entries, the base with fewer."""
    models, base = pool(1)
    for count in (1, 4):
        full, selected = (fuse(Sce(select_topk=k), models * count, base) for k in (1.0, 0.9))
        for name in base:
            torch.testing.assert_close(full[name], models[0][name], rtol=1e-6, atol=1e-6)
            assert torch.equal(selected[name], base[name])


def test_sce_weighs_each_tensor_for_itself() -> None:
    rows = [[{"a": torch.tensor([4.0, 2.0])}, {"a": torch.tensor([1.0, 1.0])}]]
    rows += [[{"a": s["a"], "b": torch.full((3,), 0.5 + i)} for i, s in enumerate(rows[0])]]
    results = [fuse(Sce(), states, {name: torch.zeros_like(t) for name, t in states[0].items()}) for states in rows]
    assert torch.equal(results[0]["a"], results[1]["a"])


def test_sce_selects_exactly_in_large_tensors() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.standard_normal((2, 1_300_000)).astype(np.float32)
    second[::3] = first[::3]
    base = {"w": torch.zeros(1_300_000)}
    merged = fuse(Sce(select_topk=0.25), [{"w": torch.from_numpy(first)}, {"w": torch.from_numpy(second)}], base)
    gap = np.abs(first - second)
    keep = int(0.25 * np.count_nonzero(gap))
    # The variance of two is a quarter of the squared difference.
    chosen = np.zeros(gap.size, bool)
    chosen[np.argsort(-(gap * gap), kind="stable")[:keep]] = True
    assert np.array_equal(merged["w"].numpy() != 0, chosen)


@pytest.mark.parametrize("topk", [1.0, 0.5])
def test_sce_refuses_what_a_comparison_would_drop(topk: float) -> None:
    models, base = pool(3)
    models[2]["b"][3, 4] = float("inf")
    with pytest.raises(NonFiniteError, match=r"'model_2'.*'b'"):
        fuse(Sce(select_topk=topk), models, base)


# PCB-Merging


def test_pcb() -> None:
    """G18, and the degenerate ratio."""
    method = PcbMerging(ratio=0.3, scaling_factor=1.0)
    assert merge(method, R) == pytest.approx([0.700621, 0.8, -0.65, -0.7, 0, -0.8, 0, 0, 0, 0], abs=1e-6)
    assert merge(PcbMerging(ratio=0.1, scaling_factor=1.0), R) == [0.0] * 10


def test_pcb_sees_one_vector_whatever_the_tensors() -> None:
    states = [{"a": torch.tensor(row[:4]), "b": torch.tensor([row[4:]])} for row in R]
    base = {"a": torch.zeros(4), "b": torch.zeros(1, 6)}
    merged = fuse(PcbMerging(ratio=0.3, scaling_factor=1.0), states, base)
    got = torch.cat([merged["a"], merged["b"][0]]).tolist()
    assert got == pytest.approx([0.700621, 0.8, -0.65, -0.7, 0, -0.8, 0, 0, 0, 0], abs=1e-6)


def pcb_by_sorting(deltas: np.ndarray, ratio: float) -> np.ndarray:
    """PCB-Merging by full sorts, in float64; `deltas`: models x entries."""
    count, d = deltas.shape
    total = deltas.sum(0)
    above, below = np.zeros(d), np.zeros(d)
    for delta in deltas:
        ordered = np.sort(np.abs(delta))
        low, high = ordered[int(d * 1e-4)], ordered[int(d * (1 - 1e-4) - 1)]
        clipped = np.clip(np.abs(delta), low, high)
        share = (clipped - low) / (high - low) if high > low else np.zeros(d)
        beta = np.exp(count * share**2) * np.tanh(delta * total)
        floor = np.sort(beta)[min(d - 1, int(d * (1 - ratio)))]
        scale = np.maximum(beta, floor) - floor
        scale = scale / scale.max() if scale.max() > 0 else scale
        above += scale * np.sign(delta) * clipped
        below += scale
    return above / np.maximum(below, 1e-12)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.95, 1.0])
def test_pcb_of_many_entries(ratio: float) -> None:
    """Millions of entries, four of five of them zero in one tensor; a floor above, at and below 0."""
    rng = np.random.default_rng(1)
    arrays = [
        {
            "b": (0.01 * rng.standard_normal((1200, 1000)) * (rng.random((1200, 1000)) < 0.2)).astype(np.float32),
            "a": (0.02 * rng.standard_normal(300_000)).astype(np.float32),
            "c": (0.1 * rng.standard_normal((5, 7))).astype(np.float32),
        }
        for _ in range(3)
    ]
    models = [{name: torch.from_numpy(array) for name, array in model.items()} for model in arrays]
    base = {name: torch.zeros_like(tensor) for name, tensor in models[0].items()}
    merged = fuse(PcbMerging(ratio=ratio, scaling_factor=1.0), models, base)
    got = np.concatenate([merged[name].reshape(-1).numpy() for name in sorted(base)])
    whole = np.stack([np.concatenate([model[name].reshape(-1) for name in sorted(base)]) for model in arrays])
    np.testing.assert_allclose(got, pcb_by_sorting(whole.astype(np.float64), ratio), rtol=1e-6, atol=1e-8)


def test_pcb_of_one_magnitude_leaves_the_base() -> None:
    """No entry wins a competition among equals."""
    base = {"w": torch.arange(50.0)}
    models = [{"w": base["w"] + 0.5}, {"w": base["w"] + 0.5}]
    assert torch.equal(fuse(PcbMerging(), models, base)["w"], base["w"])


# All


@pytest.mark.parametrize(
    "method",
    [Dare(), Della(), Breadcrumbs(), Sce(), Sce(select_topk=0.5), PcbMerging(ratio=0.3)],
    ids=["dare", "della", "breadcrumbs", "sce", "sce-half", "pcb"],
)
def test_a_common_shift_shifts_the_result(method: Any) -> None:
    """L6."""
    models, base = pool(3, torch.float64)
    offset = {name: torch.full_like(tensor, 4.0) for name, tensor in base.items()}
    moved = [{name: model[name] + offset[name] for name in base} for model in models]
    plain = fuse(method, models, base)
    shifted = fuse(method, moved, {name: base[name] + offset[name] for name in base})
    for name in base:
        torch.testing.assert_close(shifted[name], plain[name] + offset[name], rtol=1e-12, atol=1e-12)
