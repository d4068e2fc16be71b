"""Adapters against worked numbers: golden vectors G20 and G21; laws of the adapter algebra, Core Space and KnOTS."""

from __future__ import annotations

import loops
import loops_lora as lora
import loops_spectral as spectral
import numpy as np
import pytest

FIRST = lora.Adapter(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0, 2.0]]), 2.0)
SECOND = lora.Adapter(np.array([[2.0], [1.0]]), np.array([[0.0, 1.0, 1.0]]), 0.5)
WEIGHTS = [0.5, 1.0]
EXACT = [[1, 1, 3], [0, 0.5, 0.5]]
GATES = [{"k": np.array([1.2, 0.8])}, {"k": np.array([0.9, 1.5])}]


def near(left: np.ndarray, right: np.ndarray, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def drawn(ranks: list[int], out: int = 7, width: int = 6, seed: int = 0) -> list[lora.Adapter]:
    rng = np.random.default_rng(seed)
    return [
        lora.Adapter(rng.standard_normal((out, r)), rng.standard_normal((r, width)), float(rng.uniform(0.5, 2.0)))
        for r in ranks
    ]


def weighted(weights: list[float]) -> lora.Merge:
    return lambda matrices: spectral.total([w * each for w, each in zip(weights, matrices, strict=True)])


def test_weighted_sums() -> None:
    """G20."""
    adapters = [FIRST, SECOND]
    near(lora.weighted_sum(adapters, WEIGHTS), np.array(EXACT))
    near(lora.dense(lora.concatenated(adapters, WEIGHTS)), np.array(EXACT))
    near(lora.core_space(adapters, weighted(WEIGHTS)), np.array(EXACT))
    near(lora.knots([lora.dense(each) for each in adapters], weighted(WEIGHTS)), np.array(EXACT))
    expected = [[2.414214, 1.707107, 6.535534], [0.707107, 0.5, 1.914214]]
    near(lora.dense(lora.factor_average(adapters, WEIGHTS)), np.array(expected), 1e-6)


def test_scaling() -> None:
    """G20."""
    assert lora.scaling(32, 16) == 2
    assert lora.scaling(32, 16, rslora=True) == 8


def test_gates() -> None:
    """G21, with the shrinking that must not happen told beside it."""
    assert lora.ia3_arithmetic(GATES, [0.5, 0.5])["k"] == pytest.approx([1.05, 1.15], abs=1e-6)
    assert lora.ia3_arithmetic(GATES, [1.0, 1.0], 0.3)["k"] == pytest.approx([1.03, 1.09], abs=1e-6)
    assert lora.ia3_geometric(GATES)["k"] == pytest.approx([1.039230, 1.095445], abs=1e-6)
    assert loops.weighted_mean(GATES, [0.5, 0.3], normalize=False)["k"] == pytest.approx([0.87, 0.85], abs=1e-6)
    assert lora.ia3_arithmetic(GATES, [0.5, 0.3])["k"] == pytest.approx([1.07, 1.05], abs=1e-6)


def test_gate_laws() -> None:
    """Weight 1 alone is the identity; neutral and missing modules change nothing; averages of folded weights."""
    only = {"k": np.array([1.2, 0.8]), "ff": np.array([2.0])}
    assert lora.ia3_arithmetic([only], [1.0])["k"] == pytest.approx(only["k"], abs=1e-15)
    assert lora.ia3_geometric([only])["ff"] == pytest.approx(only["ff"], abs=1e-15)
    neutral = {"k": np.ones(2), "ff": np.ones(1)}
    for other in (neutral, {}):
        assert lora.ia3_arithmetic([only, other], [1.0, -7.0])["k"] == pytest.approx(only["k"], abs=1e-15)
        assert lora.ia3_geometric([only, other], [1.0, -7.0])["ff"] == pytest.approx(only["ff"], abs=1e-15)
    weight = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    folded = [np.diag(each["k"]) @ weight for each in GATES]
    near(np.diag(lora.ia3_arithmetic(GATES, [0.5, 0.5])["k"]) @ weight, (folded[0] + folded[1]) / 2)
    with pytest.raises(ValueError, match="geometric"):
        lora.ia3_geometric([{"k": np.array([-1.0])}])


@pytest.mark.parametrize("ranks", [[2], [1, 1], [2, 2, 2], [1, 3, 2], [4, 4, 4]])
def test_linear_methods_do_not_notice_the_core(ranks: list[int]) -> None:
    """L35 for task arithmetic, with mixed ranks and negative weights, in Core Space, KnOTS and concatenation."""
    adapters = drawn(ranks)
    weights = [1.5, -0.5, 0.25][: len(ranks)]
    plain = lora.weighted_sum(adapters, weights)
    near(lora.core_space(adapters, weighted(weights)), plain)
    near(lora.knots([lora.dense(each) for each in adapters], weighted(weights)), plain)
    merged = lora.concatenated(adapters, weights)
    assert merged.down.shape[0] == sum(ranks)
    near(lora.dense(merged), plain)


def test_one_adapter() -> None:
    """L63 at the level of matrices: weight 1 alone is the identity."""
    (adapter,) = drawn([3])
    for merged in (lora.concatenated([adapter], [1.0]), lora.factor_average([adapter], [1.0])):
        near(lora.dense(merged), lora.dense(adapter))
    near(lora.dense(lora.factor_average([adapter], [-2.0])), -2.0 * lora.dense(adapter))


def test_core_matrices_share_singular_values() -> None:
    adapters = drawn([2, 3])
    core = lora.core_project(adapters)
    near(core.left.T @ core.left, np.eye(5))
    near(core.right @ core.right.T, np.eye(5))
    for adapter, small in zip(adapters, core.cores, strict=True):
        near(lora.core_back(core, small), lora.dense(adapter))
        near(spectral.components(small)[1], spectral.components(lora.dense(adapter))[1])


def test_spectral_methods_in_the_core() -> None:
    """L35: TSV-M and Iso-C in the core are the dense results once null directions are dropped (equal ranks)."""
    adapters = drawn([2, 2, 2], out=12, width=10)
    deltas = [lora.dense(each) for each in adapters]
    near(lora.core_space(adapters, spectral.tsvm), spectral.tsvm(deltas), 1e-10)
    near(lora.core_space(adapters, spectral.iso_c), spectral.iso_c(deltas), 1e-10)


def test_knots_blocks() -> None:
    """The aligned blocks rebuild the deltas, and shared null directions are gone."""
    deltas = [lora.dense(each) for each in drawn([1, 2])]
    left, aligned = lora.knots_parts(deltas)
    assert left.shape == (7, 3)
    for delta, block in zip(deltas, aligned, strict=True):
        near(left @ block, delta)


def test_dora() -> None:
    """With the norms of the adapted rows as magnitudes, DoRA is LoRA."""
    (adapter,) = drawn([2])
    weight = np.random.default_rng(1).standard_normal((7, 6))
    adapted = weight + lora.dense(adapter)
    near(lora.dora(adapter, weight, np.linalg.norm(adapted, axis=1)), adapted)
    near(np.linalg.norm(lora.dora(adapter, weight, np.full((7, 1), 2.0)), axis=1), np.full(7, 2.0))
