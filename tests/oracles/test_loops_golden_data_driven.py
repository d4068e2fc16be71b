"""Data-driven merging against worked numbers: golden vectors G6, G10, G11, G12, G22; laws of the loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import loops
import loops_adamerging as adamerging
import loops_fisher as fisher
import loops_mats as mats
import loops_regmean as regmean
import loops_vision as vision
import numpy as np
import pytest
from scipy.optimize import lsq_linear
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import log_softmax

G1 = np.array([[2.0, 1.0], [1.0, 2.0]])
G2 = np.array([[1.0, 0.0], [0.0, 3.0]])
W1 = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
W2 = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, -1.0]])
B1 = np.diag([1.0, 2.0, 1.0])
B2 = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
INPUTS = [np.array([1.0, 0.0]), np.array([1.0, 2.0])]
IDENTITY = {"weight": np.eye(2)}
SHAPES = {"hidden.weight": (4, 3), "hidden.bias": (4,), "head.weight": (3, 4), "head.bias": (3,)}


def near(left: object, right: object, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=tolerance, atol=tolerance)


def golden(got: object, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=1e-6)


def drawn(shapes: dict[str, tuple[int, ...]], seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: scale * rng.standard_normal(shape) for name, shape in shapes.items()}


def rows(count: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width))


def near_models(left: dict[str, np.ndarray], right: dict[str, np.ndarray], tolerance: float = 1e-12) -> None:
    assert list(left) == list(right)
    for name in left:
        near(left[name], right[name], tolerance)


# Fisher


def test_fisher_merge() -> None:
    """G6: the floor comes before the weights, so a coordinate without Fisher gets the weighted mean."""
    theta = [{"w": np.array([1.0, 2, -1])}, {"w": np.array([3.0, 0, 1])}]
    statistics = [{"w": np.array([1.0, 0, 2])}, {"w": np.array([3.0, 0, 0])}]
    for mode in ("add", "max"):
        golden(fisher.merge(theta, statistics, floor=1e-8, normalize=False, floor_mode=mode)["w"], [2.5, 1, -1])
    golden([fisher.fisher_norm(each) for each in statistics], [2.236068, 3])
    golden(fisher.model_weights(statistics), [0.572949, 0.427051])
    golden(fisher.merge(theta, statistics)["w"], [2.381966, 1.145898, -0.999999])
    near(fisher.merge(theta, statistics, floor=0.0)["w"], [(1 + 3 * 5**0.5) / (1 + 5**0.5), 1, -1], 1e-6)


def test_fisher_estimators() -> None:
    """G12, whose last line no Fisher can have."""
    gold = [0, 1]
    golden(fisher.true_fisher(fisher.LINEAR, IDENTITY, INPUTS)["weight"], [[0.196612, 0.393224]] * 2)
    golden(fisher.empirical_fisher(fisher.LINEAR, IDENTITY, INPUTS, gold)["weight"], [[0.072329, 0.144659]] * 2)
    golden(fisher.fusionbench_fisher(fisher.LINEAR, IDENTITY, INPUTS, 1)["weight"], [[0.022253, 0.044506]] * 2)
    golden(fisher.fusionbench_fisher(fisher.LINEAR, IDENTITY, INPUTS, 2)["weight"], [[0, 0.044506]] * 2)


@pytest.mark.parametrize(
    ("network", "shapes"),
    [(fisher.LINEAR, {"weight": (3, 3), "bias": (3,)}), (fisher.TANH, SHAPES)],
    ids=["linear", "tanh"],
)
def test_gradients_by_hand(network: fisher.Network, shapes: dict[str, tuple[int, ...]]) -> None:
    """Every entry of ∂ log p(c|x) against the five-point formula."""
    params = drawn(shapes, 1)
    for x in rows(2, 3, 2):
        for chosen in range(3):
            got = fisher.log_probability_gradient(network, params, x, chosen)
            assert list(got) == list(params)
            for name in params:
                for place in np.ndindex(params[name].shape):

                    def nudged(by: float, x=x, name=name, place=place, chosen=chosen) -> float:
                        moved = {key: value.copy() for key, value in params.items()}
                        moved[name][place] += by
                        return float(log_softmax(network.logits(moved, x))[chosen])

                    assert got[name][place] == pytest.approx(adamerging.slope(nudged), abs=1e-9)


def test_estimators_agree_where_they_must() -> None:
    """The true Fisher is the mean of the sampled ones over all draws, weighted with their probabilities."""
    params = drawn(SHAPES, 3)
    inputs = list(rows(2, 3, 4))
    expected = fisher.zeros(params)
    for first in range(3):
        for second in range(3):
            chance = 1.0
            for x, chosen in zip(inputs, (first, second), strict=True):
                chance *= float(fisher.softmax(fisher.TANH.logits(params, x))[chosen])
            sampled = fisher.sampled_fisher(fisher.TANH, params, inputs, [first, second])
            expected = {name: expected[name] + chance * sampled[name] for name in expected}
    near_models(fisher.true_fisher(fisher.TANH, params, inputs), expected)
    one = fisher.true_fisher(fisher.TANH, params, inputs[:1])
    near_models(fisher.true_fisher(fisher.TANH, params, inputs[:1] * 3), one)
    batches = [fisher.fusionbench_fisher(fisher.TANH, params, inputs, size)["head.bias"] for size in (1, 2, 32)]
    near(batches[1], batches[2])
    assert not np.allclose(batches[0], batches[1])


def test_fisher_laws() -> None:
    """L1, L2, L3, L20, L46 (without a floor), interpolation, one informed model."""
    theta = [drawn(SHAPES, seed) for seed in (0, 1, 2)]
    statistics = [{name: value**2 for name, value in drawn(SHAPES, seed).items()} for seed in (5, 6, 7)]
    near_models(fisher.merge(theta[:1], statistics[:1]), theta[0])
    near_models(fisher.merge([theta[0]] * 3, statistics), theta[0])
    near_models(fisher.merge(theta, statistics), fisher.merge(theta[::-1], statistics[::-1]))
    near_models(fisher.merge(theta, [statistics[0]] * 3), loops.mean(theta))
    weights = [0.5, 0.2, 0.3]
    near_models(fisher.merge(theta, [statistics[0]] * 3, weights), loops.weighted_mean(theta, weights, normalize=True))
    scaled = [{name: 7.0 * value for name, value in each.items()} for each in statistics]
    plain = fisher.merge(theta, statistics, floor=0.0, normalize=False)
    near_models(fisher.merge(theta, scaled, floor=0.0, normalize=False), plain)
    informed = [statistics[0], fisher.zeros(theta[0]), fisher.zeros(theta[0])]
    near_models(fisher.merge(theta, informed, floor=0.0, normalize=False), theta[0])
    near_models(fisher.merge(theta[:2], statistics[:2], [1.0, 0.0], normalize=False), theta[0])
    # Normalising divides a model without any Fisher by 1e-6, which makes its floor weigh as much as its rivals.
    drowned = fisher.merge(theta, informed)["head.bias"]
    assert np.abs(drowned - theta[0]["head.bias"]).max() > 0.1
    nothing = [fisher.zeros(theta[0])] * 3
    for floor in (0.0, 1e-6):
        near_models(fisher.merge(theta, nothing, floor=floor), loops.mean(theta))
    got = fisher.merge(theta, statistics, excluded={"head.bias"})
    near(got["head.bias"], loops.mean(theta)["head.bias"])
    kept = [{name: value for name, value in each.items() if name != "head.bias"} for each in statistics]
    near_models(got, fisher.merge(theta, kept))
    assert not np.allclose(got["head.weight"], fisher.merge(theta, statistics)["head.weight"], rtol=1e-9)


# RegMean


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (1.0, [[0.428571, 0.714286], [0.571429, 0.285714], [1.428571, -0.285714]]),
        (0.5, [[0.559322, 0.644068], [0.440678, 0.355932], [1.203390, -0.220339]]),
        (0.0, [[0.666667, 0.6], [0.333333, 0.4], [1, -0.2]]),
    ],
)
def test_regmean(alpha: float, expected: list[list[float]]) -> None:
    """G10."""
    golden(regmean.merge([W1, W2], [G1, G2], alpha), expected)


def test_regmean_minimises_its_objective() -> None:
    """L47: α = 1 solves the stacked least-squares problem of scipy, and its gradient is zero."""
    weights = [rows(4, 3, seed) for seed in (0, 1)]
    inputs = [[rows(5, 3, 2), rows(2, 3, 3)], [rows(6, 3, 4)]]
    grams = [regmean.gram(batches) for batches in inputs]
    best = regmean.merge(weights, grams, 1.0)
    stack = np.concatenate([np.concatenate(batches) / math.sqrt(sum(map(len, batches))) for batches in inputs])
    for row in range(4):
        parts = []
        for weight, batches in zip(weights, inputs, strict=True):
            parts.append(np.concatenate(batches) @ weight[row] / math.sqrt(sum(map(len, batches))))
        near(best[row], lsq_linear(stack, np.concatenate(parts)).x, 1e-10)
    for place in np.ndindex(best.shape):

        def nudged(by: float, place: tuple[int, ...] = place) -> float:
            moved = best.copy()
            moved[place] += by
            return regmean.objective(moved, weights, inputs)

        assert adamerging.slope(nudged) == pytest.approx(0.0, abs=1e-9)
    assert regmean.objective(best, weights, inputs) < regmean.objective(regmean.mean(weights), weights, inputs)


def test_regmean_laws() -> None:
    """Equal Grams, one expert, α = 0, common scaling, separate inputs, stored transposed."""
    weights = [rows(4, 3, seed) for seed in (0, 1, 2)]
    grams = [regmean.gram([rows(9, 3, seed)]) for seed in (3, 4, 5)]
    for alpha in (0.0, 0.6, 1.0):
        near(regmean.merge(weights, [grams[0]] * 3, alpha), regmean.mean(weights))
        near(regmean.merge(weights[:1], grams[:1], alpha), weights[0])
        near(regmean.merge(weights, [5 * each for each in grams], alpha), regmean.merge(weights, grams, alpha))
        near(regmean.merge(weights[::-1], grams[::-1], alpha), regmean.merge(weights, grams, alpha))
    diagonals = np.array([np.diag(each) for each in grams])
    near(regmean.merge(weights, grams, 0.0), np.einsum("ki,koi->oi", diagonals / diagonals.sum(0), np.array(weights)))
    first, second = np.zeros((5, 3)), np.zeros((5, 3))
    first[:, :1], second[:, 1:] = rows(5, 1, 6), rows(5, 2, 7)
    apart = regmean.merge(weights[:2], [regmean.gram([first]), regmean.gram([second])])
    near(first @ apart.T, first @ weights[0].T)
    near(second @ apart.T, second @ weights[1].T)
    models = [{"w": weight, "t": weight.T, "b": weight[0]} for weight in weights]
    merged = regmean.merge_models(models, [{"w": each, "t": each} for each in grams], 0.9, {"t"})
    near(merged["w"], merged["t"].T)
    near(merged["b"], regmean.mean([model["b"] for model in models]))


def test_padding() -> None:
    """Masked tokens change neither the product nor the count, unless they are to count."""
    batch = rows(6, 3, 0)
    mask = np.array([1, 1, 1, 1, 0, 0])
    near(regmean.gram([batch], [mask]), batch[:4].T @ batch[:4] / 4)
    near(regmean.gram([batch], [mask], count_padding=True), batch.T @ batch / 6)
    near(regmean.gram([batch[:2], batch[2:]]), regmean.gram([batch]))
    near(mats.outer_gram([batch], [mask]), regmean.gram([batch], [mask]))


def test_regmean_plus_plus() -> None:
    """L25 on one layer; the first layer is RegMean's; equal experts; a block as long as the stack is RegMean."""
    stacks = [[(rows(3, 3, 10 * i + depth), rows(1, 3, 99 - i)[0]) for depth in range(3)] for i in range(2)]
    inputs = [[rows(8, 3, 50 + i), rows(4, 3, 60 + i)] for i in range(2)]
    plain = regmean.stacked(stacks, inputs, np.tanh, 0.95)
    better = regmean.regmean_plus_plus(stacks, inputs, np.tanh)
    short = regmean.regmean_plus_plus([stack[:1] for stack in stacks], inputs, np.tanh)
    near(short[0][0], plain[0][0])
    near(better[0][0], plain[0][0])
    assert np.abs(better[1][0] - plain[1][0]).max() > 1e-3
    hidden = [[np.tanh(batch @ better[0][0].T + better[0][1]) for batch in batches] for batches in inputs]
    second = regmean.merge([stack[1][0] for stack in stacks], [regmean.gram(each) for each in hidden], 0.95)
    near(better[1][0], second)
    for left, right in zip(regmean.regmean_plus_plus(stacks, inputs, np.tanh, block=3), plain, strict=True):
        near(left[0], right[0])
    for layer, own in zip(regmean.regmean_plus_plus([stacks[0]] * 2, inputs, np.tanh), stacks[0], strict=True):
        near(layer[0], own[0], 1e-10)
        near(layer[1], own[1])


# MaTS


def kfac_products() -> list[mats.Product]:
    return [mats.kfac(G1, B1), mats.kfac(G2, B2)]


def test_mats_kfac() -> None:
    """G11."""
    weights = [W1.T, W2.T]
    solution = [[0.471816, 0.661795], [0.450939, 0.411273], [1.428571, -0.285714]]
    golden(mats.dense_kfac(weights, [G1, G2], [B1, B2]).T, solution)
    start = mats.initial(weights)
    one, _ = mats.solve(weights, kfac_products(), start, 1)
    golden(one.T.reshape(-1), [0.5, 0.71875, 0.390625, 0.390625, 1.21875, -0.21875])
    two, _ = mats.solve(weights, kfac_products(), start, 2)
    golden(two.T.reshape(-1), [0.471951, 0.660899, 0.461624, 0.405526, 1.413341, -0.301144])
    last, norms = mats.solve(weights, kfac_products(), start, 6)
    golden(norms, [1.870829, 0.828862, 0.131354, 0.037392, 0.007435, 0.000215, 0])
    golden(last.T, solution)
    zero, _ = mats.solve(weights, kfac_products(), mats.initial(weights, "zeros"), 1)
    golden(zero.T.reshape(-1), [0.271838, 0.634289, 0.362451, 0.634289, 0.362451, 0])


def spread(seed: int, width: int) -> np.ndarray:
    return regmean.gram([rows(3 * width, width, seed)])


def test_mats_solves_the_dense_system() -> None:
    """L48, L25, L46, independence of x0, scipy's solver step by step, the Jacobi preconditioner."""
    weights = [rows(4, 3, seed) for seed in (0, 1, 2)]
    a, b = [spread(seed, 4) for seed in (3, 4, 5)], [spread(seed, 3) for seed in (6, 7, 8)]
    products = [mats.kfac(left, right) for left, right in zip(a, b, strict=True)]
    exact = mats.dense_kfac(weights, a, b)
    base = rows(4, 3, 9)
    for init in ("mean", "zeros", "pretrained", "task_arithmetic"):
        got, norms = mats.solve(weights, products, mats.initial(weights, init, base), 100, 1e-12)
        near(got, exact, 1e-9)
        assert norms[-1] <= 1e-12 * np.linalg.norm(mats.right_side(products, weights))
    diagonal = mats.kfac_diagonal(a, b)
    near(mats.solve(weights, products, base, 100, 1e-12, diagonal)[0], exact, 1e-9)
    for place in np.ndindex(4, 3):
        basis = np.zeros((4, 3))
        basis[place] = 1.0
        assert diagonal[place] == pytest.approx(mats.summed(products)(basis)[place], rel=1e-12)
    _, norms = mats.solve(weights, products, exact, 100)
    assert len(norms) == 1
    scaled = [mats.kfac(9 * left, right) for left, right in zip(a, b, strict=True)]
    near(mats.solve(weights, scaled, base, 3)[0], mats.solve(weights, products, base, 3)[0])
    operator = LinearOperator((12, 12), matvec=lambda x: mats.summed(products)(x.reshape(4, 3)).reshape(-1))
    right = mats.right_side(products, weights).reshape(-1)
    for steps in (1, 4, 8):
        theirs, _ = cg(operator, right, x0=base.reshape(-1), rtol=0.0, atol=0.0, maxiter=steps)
        near(mats.solve(weights, products, base, steps, 0.0)[0].reshape(-1), theirs, 1e-8)


def test_mats_metrics() -> None:
    """L20, L25, L26: each metric by CG and in its closed form; (IA)^3 blocks; equal metrics; one model."""
    weights = [rows(4, 3, seed) for seed in (0, 1)]
    zeros = np.zeros((4, 3))
    near(mats.solve(weights, [mats.identity()] * 2, zeros, 10)[0], regmean.mean(weights))
    fishers = [rows(4, 3, seed) ** 2 for seed in (2, 3)]
    fishers[0][0, 0] = fishers[1][0, 0] = 0.0
    closed = mats.closed_diagonal(weights, fishers)
    dicts = [{"w": weight} for weight in weights], [{"w": each} for each in fishers]
    near(fisher.merge(*dicts, floor=1e-8, normalize=False, floor_mode="max")["w"], closed)
    products = [mats.diagonal_fisher(each) for each in fishers]
    below = np.maximum(fishers[0], 1e-8) + np.maximum(fishers[1], 1e-8)
    got, norms = mats.solve(weights, products, zeros, 100, 1e-12, below)
    near(got, closed, 1e-9)
    assert len(norms) == 2
    a = [spread(seed, 4) for seed in (4, 5)]
    by_grams, _ = mats.solve(weights, [mats.gram(each) for each in a], zeros, 50, 1e-13)
    near(by_grams, mats.closed_left(weights, a), 1e-9)
    near(by_grams.T, regmean.merge([weight.T for weight in weights], a, 1.0), 1e-9)
    vectors = [weight[:, 0] for weight in weights]
    blocks = [mats.ia3_block(each) for each in a]
    near(mats.solve(vectors, blocks, np.ones(4), 50, 1e-13)[0], mats.closed_left(vectors, a), 1e-9)
    near(mats.solve(weights, [mats.gram(a[0])] * 2, zeros, 50, 1e-13)[0], regmean.mean(weights), 1e-9)
    near(mats.solve(weights[:1], [mats.gram(a[0])], zeros, 50, 1e-13)[0], weights[0], 1e-9)


def test_mats_stops() -> None:
    """Dead inputs stay at x0, a direction without curvature ends the search, no step without an iteration."""
    weights = [rows(4, 3, seed) for seed in (0, 1)]
    inputs = [rows(9, 4, seed) for seed in (2, 3)]
    for each in inputs:
        each[:, 1] = 0.0
    start = rows(4, 3, 5)
    products = [mats.gram(regmean.gram([each])) for each in inputs]
    got, _ = mats.solve(weights, products, start, 50, 1e-12)
    assert got[1].tolist() == start[1].tolist()
    assert np.abs(got[0] - start[0]).max() > 1e-3
    stuck, norms = mats.conjugate_gradient(lambda w: -w, np.ones((2, 1)), np.zeros((2, 1)), 5)
    assert (stuck.tolist(), len(norms)) == ([[0.0], [0.0]], 1)
    assert mats.solve(weights, products, start, 0)[0].tolist() == start.tolist()


# AdaMerging


def test_entropies() -> None:
    """G22; the entropy over two label words is that of their logits alone."""
    logits = np.array([[2.0, 0, 0], [0, 2, 0]])
    golden(adamerging.mean_entropy(logits), 0.665573)
    golden(adamerging.entropy_of_mean(logits), 1.017357)
    golden(adamerging.entropy_of(np.array([1.0, 5.0, 1.0]), [0, 2]), math.log(2))
    near(adamerging.mean_entropy(logits, [0, 1, 2]), adamerging.mean_entropy(logits))


def entropy_slopes(params: dict[str, np.ndarray], batch: np.ndarray) -> fisher.Gradient:
    """∂/∂θ of the mean entropy by hand: −(log(p + ε) + p/(p + ε)) through the softmax, then the network."""
    total = fisher.zeros(params)
    for x in batch:
        p = fisher.softmax(fisher.TANH.logits(params, x))
        inner = -(np.log(p + 1e-8) + p / (p + 1e-8))
        upstream = p * (inner - float(p @ inner))
        gradient = fisher.TANH.backward(params, x, upstream)
        total = {name: total[name] + gradient[name] / len(batch) for name in total}
    return total


def toy(experts: int = 3) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    base = drawn(SHAPES, 0)
    return base, [{k: base[k] + v for k, v in drawn(SHAPES, 1 + i, 0.5).items()} for i in range(experts)]


def test_gradients_of_coefficients() -> None:
    """∂L/∂λ = ⟨∂L/∂θ, τ⟩, per tensor; task-wise the sum over tensors."""
    base, experts = toy()
    vectors = adamerging.task_vectors(experts, base)
    batches = [rows(5, 3, 20), rows(4, 3, 21)]
    networks = [fisher.TANH.logits] * 2
    coefficients = {name: [0.3, 0.1, 0.5] for name in base}

    def value(used: adamerging.Coefficients) -> float:
        return adamerging.loss(adamerging.merged(base, vectors, used), networks, batches)

    params = adamerging.merged(base, vectors, coefficients)
    slopes = [entropy_slopes(params, batch) for batch in batches]
    layer_wise = adamerging.gradient(value, coefficients, layer_wise=True)
    task_wise = adamerging.gradient(value, coefficients, layer_wise=False)
    for i in range(3):
        for name in base:
            expected = sum(float(np.sum(slope[name] * vectors[i][name])) for slope in slopes)
            assert layer_wise[name][i] == pytest.approx(expected, abs=1e-9)
            assert task_wise[name][i] == pytest.approx(sum(layer_wise[key][i] for key in base), abs=1e-9)


def run(layer_wise: bool, steps: int = 8, **options: object) -> list[adamerging.Coefficients]:
    base, experts = toy(2)
    vectors = adamerging.task_vectors(experts, base)
    stream = [[rows(4, 3, 30 + step), rows(4, 3, 70 + step)] for step in range(steps)]
    return adamerging.trajectory(base, vectors, [fisher.TANH.logits] * 2, stream, layer_wise=layer_wise, **options)


def test_trajectories() -> None:
    """L29, the first step of Adam is lr, one tensor makes both kinds equal, the entropy falls on a fixed batch."""
    base, experts = toy(2)
    vectors = adamerging.task_vectors(experts, base)
    path = run(layer_wise=True)
    near_models(adamerging.merged(base, vectors, path[0]), loops.task_arithmetic(experts, base, 0.3))
    assert len(path) == 9
    for name in base:
        near(np.abs(np.array(path[1][name]) - 0.3), [1e-3] * 2, 1e-6)
    tied = run(layer_wise=False)
    assert all(step[name] == step["head.bias"] for step in tied for name in base)
    assert path[-1]["head.weight"] != path[-1]["head.bias"]
    only = {"weight": (3, 3)}
    single, moved = drawn(only, 0), [drawn(only, 1), drawn(only, 2)]
    stream = [[rows(4, 3, 5)] * 2] * 20
    both = [
        adamerging.trajectory(single, moved, [fisher.LINEAR.logits] * 2, stream, layer_wise=kind, lr=0.01)
        for kind in (True, False)
    ]
    assert both[0] == both[1]
    start, end = (
        adamerging.loss(adamerging.merged(single, moved, both[0][at]), [fisher.LINEAR.logits] * 2, stream[0])
        for at in (0, -1)
    )
    assert end < start - 0.01


def test_bounded_coefficients() -> None:
    """Both readings of clamping agree inside [0, 1]; at the border only one of them keeps the raw value inside."""
    assert run(True, constraint="clamp") == run(True) == run(True, clamp_after=True)
    free = np.array([step["head.bias"] for step in run(False, init=1.0, lr=0.2)])
    between = np.array([step["head.bias"] for step in run(False, init=1.0, lr=0.2, constraint="clamp")])
    after = np.array([step["head.bias"] for step in run(False, init=1.0, lr=0.2, clamp_after=True)])
    assert free.max() > 1.0
    assert between.max() > 1.0
    assert after.max() == 1.0
    near(between[1], free[1])
    near(after[1], np.clip(free[1], 0.0, 1.0))
    raw = {"w": [0.2, -0.4, 1.1]}
    outer = {"w": [1.0, -2.0, 0.5]}
    back = adamerging.pulled_back(raw, outer, "softmax")["w"]
    for i in range(3):

        def nudged(by: float, i: int = i) -> float:
            moved = {"w": [value + by * (j == i) for j, value in enumerate(raw["w"])]}
            return float(np.dot(adamerging.effective(moved, "softmax")["w"], outer["w"]))

        assert back[i] == pytest.approx(adamerging.slope(nudged), abs=1e-10)
    assert adamerging.pulled_back(raw, outer, "clamp")["w"] == [1.0, 0.0, 0.0]


def test_adam_by_hand() -> None:
    """Two steps with gradients 1 and −2, worked out."""
    adam = adamerging.Adam(lr=0.1)
    first = adam.step({"w": [0.0]}, {"w": [1.0]})
    near(first["w"], [-0.1], 1e-8)
    m = (0.9 * 0.1 + 0.1 * -2.0) / (1 - 0.81)
    v = (0.999 * 0.001 + 0.001 * 4.0) / (1 - 0.999**2)
    near(adam.step(first, {"w": [-2.0]})["w"], [-0.1 - 0.1 * m / math.sqrt(v)], 1e-8)


def test_plus_plus() -> None:
    """int(k·d) entries per model before the election; the sum of what stays is TIES; agreement everywhere."""
    rng = np.random.default_rng(0)
    base = {"b": rng.standard_normal(7), "a": rng.standard_normal((4, 2))}
    experts = [{k: v + rng.standard_normal(v.shape) for k, v in base.items()} for _ in range(3)]
    vectors = adamerging.plus_plus(experts, base, 0.4)
    ties = loops.ties(experts, base, scaling_factor=0.3, density=0.4)
    near_models(adamerging.merged(base, vectors, {name: [0.3] * 3 for name in base}), ties)
    for name in base:
        signs = np.sign([vector[name] for vector in vectors])
        assert np.all(np.abs(signs.sum(0)) == np.abs(signs).sum(0))
    tie = {"b": np.zeros(2), "a": np.zeros(3)}
    equal = [{"b": np.ones(2), "a": np.array([1.0, -1.0, 0.5])}]
    (only,) = adamerging.plus_plus(equal, tie, 0.5)
    assert (only["a"].tolist(), only["b"].tolist()) == ([1.0, -1.0, 0.0], [0.0, 0.0])


# Vision


def test_zero_shot_head() -> None:
    """Unit rows; the length of a template does not count; logits are scaled cosines."""
    head = vision.zero_shot_head([[[3.0, 0.0], [0.0, 1.0]], [[-2.0, 0.0], [-9.0, 0.0]]])
    golden(head, [[0.707107, 0.707107], [-1, 0]])
    golden(vision.zero_shot_logits([[5.0, 0.0]], head, math.log(100.0)), [[70.710678, -100]])


def picture(height: int = 40, width: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3))


def test_corruptions_by_hand() -> None:
    """Contrast keeps channel means; impulses are 0 and 1; noise is clipped; mud has its colour."""
    image = 0.3 + 0.4 * picture()
    near(vision.contrast(image, 0.15).mean((0, 1)), image.mean((0, 1)))
    near(vision.contrast(image, 0.15), 0.15 * image + 0.85 * image.mean((0, 1)))
    golden(vision.contrast(np.array([[[0.0], [1.0]]]), 0.5), [[[0.25], [0.75]]])
    hit = np.random.default_rng(1).random((40, 48)) < 0.05
    salt = np.random.default_rng(2).random((40, 48)) < 0.5
    struck = vision.impulse_noise(image, hit, salt)
    assert np.array_equal(struck, np.where(hit[..., None], salt[..., None].astype(float), image))
    noise = np.random.default_rng(3).standard_normal(image.shape)
    noisy = [vision.gaussian_noise(image, noise, sigma) for sigma in vision.GAUSSIAN_NOISE]
    errors = [vision.mean_squared_error(each, image) for each in noisy]
    assert errors == sorted(errors)
    assert max(each.max() for each in noisy) <= 1.0
    mud = vision.covered(image, np.ones((40, 48)), vision.SPATTER_COLOUR["mud"])
    golden(mud[0, 0] * 255, [63, 42, 20])


def test_motion_blur() -> None:
    """Weights add to 1, a flat image stays, one dot becomes its kernel, centred blur has no direction."""
    taps = vision.motion_taps(6, 1.0, 0.0)
    assert len(taps) == 13
    golden(sum(weight for _, _, weight in taps), 1)
    assert [(down, right) for down, right, _ in taps] == [(0, i) for i in range(13)]
    golden([taps[i][2] / taps[0][2] for i in range(3)], [1, math.exp(-0.5), math.exp(-2)])
    assert [tap[:2] for tap in vision.motion_taps(1, 1.0, 45.0)] == [(0, 0), (1, 1), (1, 1)]
    near(vision.motion_blur(np.full((9, 9, 3), 0.25), 9, 2.5, -30.0), np.full((9, 9, 3), 0.25))
    dot = np.zeros((1, 40, 1))
    dot[0, 20, 0] = 1.0
    golden(vision.motion_blur(dot, 6, 1.0, 0.0)[0, 8:21, 0], [weight for _, _, weight in taps[::-1]])
    image = picture()
    near(vision.motion_blur(image, 6, 2.0, 0.0, True), vision.motion_blur(image[:, ::-1], 6, 2.0, 0.0, True)[:, ::-1])


@pytest.mark.parametrize("size", [(32, 32), (40, 48), (224, 60), (28, 28)])
def test_pixelate_is_the_box_filter_of_pillow(size: tuple[int, int]) -> None:
    """Two steps against Pillow, which rounds to bytes after each direction of each step."""
    pillow = pytest.importorskip("PIL.Image")
    height, width = size
    levels = np.round(255 * picture(height, width)).astype(np.uint8)
    image = pillow.fromarray(levels)
    for c in vision.PIXELATE:
        small = image.resize((int(32 * c), int(32 * c)), pillow.Resampling.BOX).resize((32, 32), pillow.Resampling.BOX)
        got = vision.pixelate_parity(levels / 255.0, c) * 255
        assert got.shape == (32, 32, 3)
        assert np.abs(got - np.asarray(small)).max() <= 1.01
        small = image.resize((int(c * width), int(c * height)), pillow.Resampling.BOX)
        back = small.resize((width, height), pillow.Resampling.BOX)
        got = vision.pixelate(levels / 255.0, c) * 255
        assert got.shape == levels.shape
        assert np.abs(got - np.asarray(back)).max() <= 1.01


@pytest.mark.parametrize(
    ("corrupt", "levels"),
    [
        (lambda image, level: vision.contrast(image, level), vision.CONTRAST),
        (lambda image, level: vision.motion_blur(image, *level, 20.0), vision.MOTION_BLUR),
    ],
    ids=["contrast", "motion_blur"],
)
def test_severity_is_monotone(corrupt: Callable[..., np.ndarray], levels: tuple[object, ...]) -> None:
    image = picture(24, 24)
    errors = [vision.mean_squared_error(corrupt(image, level), image) for level in levels]
    assert errors == sorted(errors)
    assert errors[0] > 0.0


def test_uncertainty() -> None:
    """One-sigma errors of the GLUE sets in points; paired tests on six examples worked out."""
    golden(100 * vision.standard_error(0.8, 277), 2.403368)
    first, second = [1, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 0]
    assert vision.discordant(first, second) == (3, 1)
    mean, error = vision.paired_difference(first, second)
    golden([mean, error], [2 / 6, math.sqrt((4 / 6 - 1 / 9) / 6)])
    golden(vision.mcnemar(first, second), [1.0, 0.317311])
    golden(vision.mcnemar(first, second, continuity=True)[0], 0.25)
    golden(vision.mcnemar_exact(first, second), 10 / 16)
    assert vision.mcnemar(first, first) == (0.0, 1.0)
    assert vision.mcnemar_exact(first, first) == 1.0
