"""Spectral merging against worked numbers: golden vector G19; laws."""

from __future__ import annotations

import loops_spectral as spectral
import numpy as np
import pytest

T1 = np.array([[2, 0, 1, 0], [0, 1, 0, 1], [1, 0, 3, 0], [0, 2, 0, -1]], dtype=np.float64)
T2 = np.array([[1, 1, 0, 0], [-1, 2, 0, 1], [0, 0, 1, 2], [1, 0, 0, 1]], dtype=np.float64)
T3 = np.array([[0, 1, 0, 2], [1, 0, 0, 0], [0, 3, 1, 0], [1, 1, 0, 1]], dtype=np.float64)

TSVM = """.628345,.423025,2.753879,-1.695139 -1.455049,1.766456,.198302,1.082961
.770468,-.031163,2.065852,1.785023 1.530901,1.548246,-.682232,-.016799"""
ISO_C = """3.037632,.343821,-.296461,.605868 -.727638,1.991078,-.602600,2.223378
.107703,-.209230,2.949646,1.022056 .179225,2.382016,.805581,-1.856152"""
ISO_CTS = """3.129010,.280744,.105195,.165480 -.253273,1.524746,-.704411,2.650053
-.149085,.073496,3.051392,.754555 -.175765,2.738413,.299535,-1.512764"""
WUDI = """1.381349,.666535,1.185248,-.169632 -.671182,1.620031,.270365,1.087179
.459281,.381263,3.248389,.950705 .696584,1.048193,-.122107,.289970"""
SWUDI = """2.597278,1.086818,.468177,-.223633 -.559689,1.816006,.065156,1.328304
.400706,.004488,3.149470,1.562299 1.075518,1.610090,-.077403,-.272388"""
SVC = """1.732173,.609863,.747219,.237748 -.395309,1.615374,.143463,1.188633
.789206,.245750,2.583177,1.303883 .531598,1.149478,.207627,-.040699"""
CART = """.772108,.707820,1.235036,.950118 -.106916,.958595,.078986,.505852
.481650,1.056914,1.837720,.621571 .188861,.785855,-.132538,-.017449"""


def table(text: str) -> np.ndarray:
    return np.array([[float(entry) for entry in row.split(",")] for row in text.split()])


def near(left: np.ndarray, right: np.ndarray, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def golden(got: np.ndarray, expected: str) -> None:
    np.testing.assert_allclose(got, table(expected), rtol=0, atol=1e-6)


def drawn(count: int, shape: tuple[int, int], seed: int = 0, rank: int | None = None) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    if rank is None:
        return [rng.standard_normal(shape) for _ in range(count)]
    return [rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1])) for _ in range(count)]


def test_singular_values() -> None:
    """G19, the numbers the others start from."""
    for matrix, expected in [
        (T1, [3.618034, 2.302776, 1.381966, 1.302776]),
        (T2, [2.828427, 2.083968, 1.571841, 0.431733]),
        (T1 + T2, [5.114314, 3.852723, 3.134177, 0.421012]),
    ]:
        assert spectral.components(matrix)[1] == pytest.approx(expected, abs=1e-6)
    assert spectral.spectrum([T1, T2])[::-1] == pytest.approx([0.213190, 0.401645, 0.635223, 0.749943], abs=1e-6)


def test_orthogonalising_methods() -> None:
    """G19."""
    golden(spectral.tsvm([T1, T2]), TSVM)
    golden(spectral.iso_c([T1, T2]), ISO_C)
    golden(spectral.iso_cts([T1, T2], 0.8), ISO_C)
    golden(spectral.iso_cts([T1, T2], 0.5), ISO_CTS)
    assert spectral.components(spectral.iso_c([T1, T2]))[1] == pytest.approx([3.130557] * 4, abs=1e-6)
    assert (spectral.cts_split(4, 2, 0.8), spectral.cts_split(4, 2, 0.5)) == (0, 2)


def test_least_interference() -> None:
    """G19."""
    golden(spectral.wudi_minimum([T1, T2]), WUDI)
    golden(spectral.aswudi([T1, T2]), WUDI)
    assert spectral.aswudi_count(spectral.spectrum([T1, T2])) == 4
    golden(spectral.swudi([T1, T2], t=3.0, r=0.5), SWUDI)


def test_singular_value_calibration() -> None:
    """G19."""
    golden(spectral.svc(T1 + T2, [T1, T2], 1.0), SVC)
    factors = spectral.svc_factors(T1 + T2, [T1, T2], 1.0)
    assert factors == pytest.approx([0.681060, 0.518154, 0.514109, 1.0], abs=1e-6)
    factors = spectral.svc_factors(T1 + T2, [T1, T2], 0.1)
    assert factors == pytest.approx([0.681060, 0.518154, 0.514109, 7.008429], abs=1e-6)


def test_centred_low_rank() -> None:
    """G19, and L34: two experts give their mean for every λ, and so does the full rank."""
    golden(spectral.cart([T1, T2, T3], k=2, scaling_factor=1.0), CART)
    for scale in (0.3, 1.0, 2.3):
        near(spectral.cart([T1, T2], k=2, scaling_factor=scale), (T1 + T2) / 2)
        near(spectral.cart([T1, T2, T3], k=4, scaling_factor=scale), (T1 + T2 + T3) / 3)
        near(spectral.cart([T1], k=2, scaling_factor=scale), T1)
        near(spectral.cart([T1] * 3, k=2, scaling_factor=scale), T1)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (7, 1), (5, 5)])
def test_one_expert(shape: tuple[int, int]) -> None:
    """L1 where it holds: TSV-M, SWUDI for every f, ASWUDI, WUDI, SVC with α ≤ 1."""
    (matrix,) = drawn(1, shape)
    near(spectral.tsvm([matrix]), matrix)
    near(spectral.wudi_minimum([matrix]), matrix)
    near(spectral.swudi([matrix], t=3.0, r=0.5), matrix, 1e-9)
    near(spectral.aswudi([matrix]), matrix, 1e-9)
    near(spectral.svc(matrix, [matrix], 0.5), matrix)


def test_equal_experts() -> None:
    """L2 with its exceptions, and L38."""
    (matrix,) = drawn(1, (6, 4))
    left, values, right = spectral.components(matrix, 2)
    near(spectral.tsvm([matrix, matrix]), spectral.rebuilt(left, values, right))
    near(spectral.swudi([matrix] * 3, t=3.0, r=0.5, init="mean"), matrix)
    near(spectral.swudi([matrix] * 3, t=1e6, r=1.0), matrix)
    near(spectral.wudi_minimum([matrix] * 3), matrix)
    near(spectral.svc(3 * matrix, [matrix] * 3, 0.1), matrix)
    (flat,) = drawn(1, (6, 4), rank=2)
    near(spectral.tsvm([flat, flat]), flat)
    near(spectral.svc(3 * flat, [flat] * 3, 1.0), flat)


def test_minimum_of_the_objective() -> None:
    """L33: the closed form with f = 1 has no gradient, and no step from it is better."""
    deltas = drawn(3, (5, 4))
    best = spectral.closed_form(deltas, [1.0] * 4)
    near(spectral.wudi_gradient(best, deltas), np.zeros((5, 4)), 1e-10)
    near(best, spectral.wudi_minimum(deltas), 1e-10)
    loss = spectral.wudi_loss(best, deltas)
    for step in drawn(5, (5, 4), seed=1):
        assert spectral.wudi_loss(best + 1e-3 * step, deltas) > loss
    c, d = spectral.interference(deltas)
    start = spectral.total(deltas)
    near(spectral.wudi_gradient(start, deltas), 2.0 * (start @ c - d), 1e-10)
    numeric = np.zeros((5, 4))
    for row in range(5):
        for column in range(4):
            nudge = np.zeros((5, 4))
            nudge[row, column] = 1e-5
            change = spectral.wudi_loss(start + nudge, deltas) - spectral.wudi_loss(start - nudge, deltas)
            numeric[row, column] = change / 2e-5
    np.testing.assert_allclose(spectral.wudi_gradient(start, deltas), numeric, rtol=1e-6, atol=1e-6)


def test_orthogonal_tasks() -> None:
    """Orthogonal rows and columns: TSV-M is the sum of the truncations, SWUDI and WUDI the sum of the experts."""
    rng = np.random.default_rng(3)
    left, right = np.linalg.qr(rng.standard_normal((6, 6)))[0], np.linalg.qr(rng.standard_normal((6, 6)))[0]
    first = spectral.rebuilt(left[:, :2], np.array([3.0, 1.0]), right[:2])
    second = spectral.rebuilt(left[:, 2:4], np.array([2.0, 0.5]), right[2:4])
    near(spectral.tsvm([first, second]), first + second)
    near(spectral.wudi_minimum([first, second]), first + second)
    near(spectral.swudi([first, second], t=5.0, r=0.5), first + second)
    # With f = 1 in a null direction v of C the rounding of Dv is divided by the floor 1e-8 of ℓ.
    near(spectral.closed_form([first, second], [1.0] * 6, "zero"), first + second, 1e-6)


def test_one_repeated_singular_value() -> None:
    """L41 and L32; full rank and numerical rank agree where there are no null directions."""
    deltas = drawn(3, (5, 4))
    values = spectral.components(spectral.total(deltas))[1]
    merged = spectral.iso_c(deltas)
    assert spectral.components(merged)[1] == pytest.approx([float(np.mean(values))] * 4, abs=1e-12)
    near(spectral.iso_cts(deltas, 1.0), merged)
    near(spectral.iso_c(deltas, "full"), merged)
    for fraction in (0.0, 0.5):
        near(spectral.iso_cts(deltas, fraction, "full"), spectral.iso_cts(deltas, fraction))
    low = drawn(2, (6, 5), rank=1)
    kept = spectral.components(spectral.total(low))[1]
    assert len(kept) == 2
    assert spectral.components(spectral.iso_c(low))[1] == pytest.approx([float(np.mean(kept))] * 2, abs=1e-12)
    assert spectral.spectral_norm(spectral.iso_c(low, "full")) == pytest.approx(float(np.sum(kept)) / 5, abs=1e-12)


def test_more_tasks_than_directions() -> None:
    """No room for a component per task: TSV-M is the mean, Iso-CTS is Iso-C."""
    deltas = drawn(5, (4, 3))
    near(spectral.tsvm(deltas), spectral.mean(deltas))
    assert spectral.cts_split(3, 5, 0.0) == 0
    near(spectral.iso_cts(deltas, 0.0), spectral.iso_c(deltas))


def test_zero_deltas() -> None:
    """L5: nothing changed, nothing merged, and no division by zero."""
    zeros = [np.zeros((4, 3))] * 2
    for merge in (spectral.tsvm, spectral.iso_c, spectral.iso_cts, spectral.wudi_minimum, spectral.aswudi):
        assert merge(zeros).tolist() == np.zeros((4, 3)).tolist()
    assert spectral.svc(zeros[0], zeros, 0.1).tolist() == zeros[0].tolist()
    assert spectral.cart(zeros, k=1, scaling_factor=2.0).tolist() == zeros[0].tolist()


def test_permutations_and_orthogonal_factors() -> None:
    """L3, L42 and L45."""
    deltas = drawn(3, (7, 6))
    merges = [spectral.tsvm, spectral.iso_c, spectral.iso_cts, spectral.wudi_minimum, spectral.aswudi]
    for merge in merges:
        near(merge(deltas), merge(deltas[::-1]), 1e-9)
    left = spectral.polar(np.concatenate([spectral.components(each, 2)[0] for each in deltas], axis=1))
    near(left.T @ left, np.eye(6))
    assert max(spectral.svc_factors(spectral.total(deltas), deltas, 1.0)) <= 1.0 + 1e-12


def test_whole_models() -> None:
    """Named matrices go through the method, all other tensors get the mean of the task vectors; λ scales both."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"w": (4, 4), "bias": (4,), "emb": (3, 4)}
    base, *models = [{name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(3)]
    got = spectral.on_matrices(models, base, spectral.tsvm, {"w"}, 0.5)
    near(got["w"], base["w"] + 0.5 * spectral.tsvm([each["w"] - base["w"] for each in models]))
    near(got["emb"], base["emb"] + 0.5 * ((models[0]["emb"] + models[1]["emb"]) / 2 - base["emb"]))
