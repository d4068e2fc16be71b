"""Sparsification and masks against worked numbers: golden vectors G4 (nearswap), G13 (RAM), G14 to G18, G23; laws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import loops
import loops_common as common
import loops_masks as masks
import loops_sparsify as sparsify
import numpy as np
import pytest

R = [
    [0.9, -0.1, 0.3, -0.7, 0.05, 0.2, -0.4, 0.6, -0.8, 0.01],
    [-0.2, 0.8, 0.4, -0.6, -0.03, -0.9, 0.1, 0.5, 0.7, -0.02],
    [0.5, -0.3, -0.9, 0.1, 0.04, 0.25, 0.35, -0.65, 0.15, 0.55],
]
STOCK = [[1.0, 0.0, 2.0, -1.0], [0.0, 1.0, 1.0, 3.0], [2.0, 1.0, 0.0, 1.0]]
PAIR = [[1.0, -2.0, 0.0, 3.0], [2.0, 1.0, -1.0, -1.0]]
TRIPLE = [[1.0, -2.0, 0.5, 3.0], [2.0, 1.0, -1.0, -1.0], [0.2, 0.1, 2.0, 0.0]]


def experts(rows: list[list[float]]) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """One flat tensor per expert, and a base of zeros."""
    return [{"w": np.array(row)} for row in rows], {"w": np.zeros(len(rows[0]))}


def entries(model: dict[str, np.ndarray]) -> list[float]:
    return [float(entry) for name in sorted(model) for entry in model[name].reshape(-1)]


def random_models(count: int, seed: int = 0) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"b.w": (5, 3), "a.w": (2, 3, 4), "c": (7,), "s": ()}
    made = [{name: np.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()} for _ in range(count + 1)]
    return made[1:], made[0]


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert set(left) == set(right)
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("mode", "expected"), [("probability", [2, 0, 6, 0]), ("l1", [2.5, 0, 7.5, 0])])
def test_dare(mode: str, expected: list[float]) -> None:
    """G16."""
    models, base = experts([[1.0, -2.0, 3.0, -4.0]])
    kept = [{"w": np.array([1, 0, 1, 0])}]
    got = sparsify.dare(models, base, masks=kept, density=0.5, rescale_mode=mode)
    assert entries(got) == pytest.approx(expected, abs=1e-12)


SPARSE = [
    (0.5, 0.1, [0.5, 0.5, 0.7, -1.3, 0, 0, -0.05, 0.45, -0.1, 0.55]),
    (0.5, 0.01, [1.4, 0.8, -0.9, -1.3, 0, -0.9, -0.05, 0.45, -0.1, 0.55]),
    (0.6, 0.3, [0.3, -0.4, 0.7, -0.5, 0.02, 0.45, 0.05, 1.1, 0.15, 0]),
]


@pytest.mark.parametrize(("density", "gamma", "expected"), SPARSE)
def test_breadcrumbs(density: float, gamma: float, expected: list[float]) -> None:
    """G15."""
    models, base = experts(R)
    got = sparsify.breadcrumbs(models, base, density=density, gamma=gamma)
    assert entries(got) == pytest.approx(expected, abs=1e-6)


def test_fewer_outliers_where_there_is_no_room() -> None:
    change = {"w": R[0]}
    got = sparsify.breadcrumbs_delta(change, density=0.9, gamma=0.3)["w"]
    assert got == [0.0, *R[0][1:]]


def test_della_probabilities() -> None:
    """G15."""
    expected = [0.65, 0.416667, 0.483333, 0.583333, 0.383333, 0.45, 0.516667, 0.55, 0.616667, 0.35]
    assert sparsify.keep_probabilities(R[0], 0.5, 0.15) == pytest.approx(expected, abs=1e-6)
    assert sum(sparsify.keep_probabilities(R[1], 0.5, 0.15)) == pytest.approx(5.0, abs=1e-12)
    assert sparsify.keep_probabilities([3.0], 0.5, 0.15) == [0.5]


def test_magmax() -> None:
    """G17; and the later of equal magnitudes."""
    models, base = experts(R)
    expected = [0.9, 0.8, -0.9, -0.7, 0.05, -0.9, -0.4, -0.65, -0.8, 0.55]
    assert entries(masks.magmax(models, base)) == expected
    models, base = experts([[1.0, -1.0], [-1.0, 1.0]])
    assert entries(masks.magmax(models, base)) == [-1.0, 1.0]


def test_emr() -> None:
    """G17."""
    models, base = experts(PAIR)
    unified, chosen, scales = masks.emr_parts(models, base)
    assert unified["w"] == [2, -2, -1, 3]
    assert [mask["w"] for mask in chosen] == [[1, 1, 0, 1], [1, 0, 1, 0]]
    assert scales == pytest.approx([0.857143, 1.666667], abs=1e-6)
    first, second = masks.emr(models, base)
    assert entries(first) == pytest.approx([1.714286, -1.714286, 0, 2.571429], abs=1e-6)
    assert entries(second) == pytest.approx([3.333333, 0, -1.666667, 0], abs=1e-6)


def test_tall_and_consensus() -> None:
    """G17."""
    models, base = experts(TRIPLE)
    chosen = masks.tall_masks(models, base, mask_scales=[1.0] * 3)
    assert [mask["w"] for mask in chosen] == [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]]
    assert entries(masks.consensus(models, base, k=2, mask_scales=[1.0] * 3)) == [0, 0, 0, 0]
    chosen = masks.tall_masks(models, base, mask_scales=[0.5] * 3)
    assert [mask["w"] for mask in chosen] == [[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]]
    got = masks.consensus(models, base, k=2, mask_scales=[0.5] * 3)
    assert entries(got) == pytest.approx([0, -0.9, 0, 0], abs=1e-12)
    assert entries(masks.tall(models, base, mask_scales=[0.5] * 3)[1]) == pytest.approx([3.2, -0.9, 0, 0], abs=1e-12)


def test_sce() -> None:
    """G14."""
    models, base = experts(R)
    assert sparsify.sce_weights(R) == pytest.approx([0.348968, 0.370247, 0.280786], abs=1e-6)
    expected = [0.721654, 0.8, -0.9, -0.648521, 0.045541, -0.9, 0.207823, 0.548521, 0.462789, 0.250768]
    assert entries(sparsify.sce(models, base)) == pytest.approx(expected, abs=1e-6)
    chosen = sparsify.sce_select(R, 0.5)
    assert sparsify.sce_weights(chosen) == pytest.approx([0.232772, 0.479837, 0.287392], abs=1e-6)
    expected = [0, 0.8, -0.9, 0, 0, -0.9, 0, 0.532665, 0.493979, 0]
    assert entries(sparsify.sce(models, base, select_topk=0.5)) == pytest.approx(expected, abs=1e-6)


def test_pcb() -> None:
    """G18, and the degenerate ratio."""
    models, base = experts(R)
    scales, _ = sparsify.pcb_scales(R, 0.3)
    expected = np.zeros((3, 10))
    expected[0, [0, 3]] = 1, 0.368811
    expected[1, [1, 5]] = 0.664790, 1
    expected[2, [0, 2]] = 0.495358, 1
    np.testing.assert_allclose(scales, expected, rtol=0, atol=1e-6)
    got = sparsify.pcb(models, base, ratio=0.3)
    assert entries(got) == pytest.approx([0.700621, 0.8, -0.65, -0.7, 0, -0.8, 0, 0, 0, 0], abs=1e-6)
    assert entries(sparsify.pcb(models, base, ratio=0.1)) == [0.0] * 10


def test_small_extras() -> None:
    """G4 (nearswap), G13 (RAM), ExPO, passthrough, negation."""
    models, base = experts(STOCK)
    assert entries(masks.nearswap(models[1], models[0], t=0.5)) == [0.5, 0.5, 1.5, -0.5]
    same(masks.nearswap(models[0], models[0], t=0.5), models[0])
    assert entries(masks.ram(models, base)) == [1.5, 1, 1.5, 1]
    start = {"w": np.ones(4)}
    assert entries(masks.expo(models[0], start, beta=0.5)) == [1, -0.5, 2.5, -2]
    assert entries(masks.passthrough(models[0], scale=2.0)) == [2, 0, 4, -2]
    assert entries(masks.negation(models[0], start)) == [1, 2, 0, 3]


def test_lines() -> None:
    """G23; one block alone; tensors outside of blocks."""
    factors = [masks.lines_factor(block, 4, 0.125, 0.5) for block in range(4)]
    assert factors == pytest.approx([0.125, 0.291667, 0.458333, 0.625], abs=1e-6)
    assert masks.lines_factor(0, 1, 0.125, 0.5) == 0.625
    base = {"head": np.ones(2), "block.1": np.ones(2)}
    merged = {"head": np.full(2, 3.0), "block.1": np.full(2, 3.0)}
    got = masks.lines(merged, base, alpha=0.25, beta=0.5, blocks={"head": None, "block.1": 1}, count=2)
    assert got["head"].tolist() == [1.5, 1.5]
    assert got["block.1"].tolist() == [2.5, 2.5]
    models, start = experts(PAIR)
    assert masks.lines_alpha(models, start, {"w": [1.0, 1.0, 1.0, 1.0]}) == pytest.approx(7 / 4 / 2)


def test_nothing_dropped() -> None:
    """L22, L24, L28: without dropping the methods are task arithmetic; DELLA with ε = 0 is DARE."""
    models, base = random_models(3)
    plain = loops.task_arithmetic(models, base, 0.3)
    ones = [{name: np.ones(base[name].shape) for name in base} for _ in models]
    for mode in ("probability", "l1"):
        same(sparsify.dare(models, base, masks=ones, density=1.0, rescale_mode=mode, scaling_factor=0.3), plain)
    same(sparsify.breadcrumbs(models, base, density=1.0, scaling_factor=0.3), plain)
    same(masks.consensus(models, base, k=0, mask_scales=[0.4] * 3, scaling_factor=0.3), plain)
    assert entries(masks.consensus(models, base, k=4, mask_scales=[0.4] * 3)) == entries(base)
    draws = [{name: np.random.default_rng(i).random(base[name].shape) for name in base} for i in range(3)]
    kept = [{name: draw[name] < 0.4 for name in base} for draw in draws]
    for consensus in ("none", "sum", "mean"):
        pruned = sparsify.della(models, base, draws=draws, density=0.4, epsilon=0.0, consensus=consensus)
        same(pruned, sparsify.dare(models, base, masks=kept, density=0.4, consensus=consensus))


def test_one_expert_and_equal_experts() -> None:
    """L1, L2 and the exceptions to them."""
    models, base = random_models(1)
    equal = models * 3
    for group in (models, equal):
        same(masks.magmax(group, base), models[0])
        same(masks.ram(group, base), models[0])
        same(sparsify.sce(group, base), models[0])
        same(sparsify.sce(group, base, select_topk=0.9), base)
        for single in masks.emr(group, base):
            same(single, models[0])
    same(masks.consensus(models, base, k=2, mask_scales=[0.4]), base)
    # At λ_t(N−1) = 1 both sides are equal and the rounding of τ + τ + τ decides; above it no mask has an entry.
    same(masks.consensus(equal, base, k=2, mask_scales=[0.51] * 3), base)


def test_disjoint_supports_are_recovered() -> None:
    """L44: EMR gives every expert back, and its vector never opposes an expert."""
    models, base = random_models(3)
    rng = np.random.default_rng(5)
    owner = {name: rng.integers(0, 3, base[name].shape) for name in base}
    disjoint = []
    for i, model in enumerate(models):
        disjoint.append({name: base[name] + np.where(owner[name] == i, model[name], 0.0) for name in base})
    for model, single in zip(disjoint, masks.emr(disjoint, base), strict=True):
        same(single, model)
    unified, chosen, _ = masks.emr_parts(models, base)
    for model, mask in zip(models, chosen, strict=True):
        change = loops.delta(model, base)
        for name in base:
            products = zip(change[name], unified[name], mask[name], strict=True)
            assert all(own * ours * keep >= 0 for own, ours, keep in products)


def test_permutations() -> None:
    """L3: the order of the experts does not matter."""
    models, base = random_models(3)
    turned = models[::-1]
    same(sparsify.sce(models, base, select_topk=0.5), sparsify.sce(turned, base, select_topk=0.5))
    same(sparsify.pcb(models, base, ratio=0.2), sparsify.pcb(turned, base, ratio=0.2))
    same(masks.ram(models, base), masks.ram(turned, base))
    options = {"density": 0.5, "gamma": 0.1, "consensus": "mean"}
    same(sparsify.breadcrumbs(models, base, **options), sparsify.breadcrumbs(turned, base, **options))


def test_election_is_that_of_ties() -> None:
    """Unpruned deltas through the election are TIES-Merging without trimming."""
    models, base = experts(R)
    changes = [loops.delta(model, base) for model in models]
    whole = loops.ties(models, base, scaling_factor=1.0, density=1.0, merge_func="mean")
    assert common.combined(changes, base, "mean")["w"] == pytest.approx(entries(whole), abs=1e-15)


def test_base_and_shift() -> None:
    """L4, L5 and L6: λ = 0 and unchanged experts give the base, and a common shift passes through."""
    models, base = random_models(3)
    draws = [{name: np.random.default_rng(i).random(base[name].shape) for name in base} for i in range(3)]
    kept = [{name: draw[name] < 0.5 for name in base} for draw in draws]
    offset = random_models(1, seed=9)[1]
    merges: list[Callable[..., dict[str, np.ndarray]]] = [
        partial(sparsify.dare, masks=kept, density=0.5),
        partial(sparsify.della, draws=draws, density=0.5, epsilon=0.2),
        partial(sparsify.breadcrumbs, density=0.5, gamma=0.1),
        partial(sparsify.sce, select_topk=0.5),
        partial(sparsify.pcb, ratio=0.2),
        masks.magmax,
        partial(masks.consensus, k=2, mask_scales=[0.4] * 3),
    ]
    for merge in merges:
        assert entries(merge(models, base, scaling_factor=0.0)) == entries(base)
        same(merge([base] * 3, base), base)
        moved = [{name: model[name] + offset[name] for name in base} for model in models]
        shifted = merge(moved, {name: base[name] + offset[name] for name in base})
        same(shifted, {name: entry + offset[name] for name, entry in merge(models, base).items()})


def test_pruning_is_unbiased() -> None:
    """L49: over many draws the mean of DELLA is τ within four standard errors, the variance (1−q)/q·τ²."""
    row = np.array(R[0])
    base = {"w": np.zeros(10)}
    chance = np.array(sparsify.keep_probabilities(R[0], 0.5, 0.15))
    rng = np.random.default_rng(0)
    drawn = [
        sparsify.della_delta({"w": R[0]}, base, {"w": rng.random(10)}, density=0.5, epsilon=0.15)["w"]
        for _ in range(4000)
    ]
    variance = (1.0 - chance) / chance * row * row
    assert np.all(np.abs(np.mean(drawn, axis=0) - row) <= 4.0 * np.sqrt(variance / len(drawn)))
    np.testing.assert_allclose(np.var(drawn, axis=0), variance, rtol=0.1)
