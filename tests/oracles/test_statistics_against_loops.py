"""Fisher, RegMean, RegMean++, MaTS and what they measure, against loops that know the formulas alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import loops_fisher
import loops_mats
import loops_regmean
import numpy as np
import pytest
import torch

from fusion_bench.api import fuse
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.structure import Structure
from fusion_bench.fit import module_fitting
from fusion_bench.fitting import TaskData
from fusion_bench.method.merging.fisher_merging import FisherMerging
from fusion_bench.method.merging.mats import Mats
from fusion_bench.method.merging.regmean import Regmean
from fusion_bench.method.merging.regmean_plus_plus import RegmeanPlusPlus
from fusion_bench.ops.conjugate_gradient import conjugate_gradient
from fusion_bench.ops.regression import regression
from fusion_bench.statistics import diagonal_fisher, input_grams, output_grams
from fusion_bench.tensor_data import TensorData

TIGHT: Any = {"rtol": 1e-9, "atol": 1e-12}


def network(seed: int) -> torch.nn.Module:
    """The oracle's tanh network: V tanh(Wx + b) + c with its names."""
    torch.manual_seed(seed)
    module = torch.nn.Sequential()
    module.add_module("hidden", torch.nn.Linear(4, 5))
    module.add_module("act", torch.nn.Tanh())
    module.add_module("head", torch.nn.Linear(5, 3))
    return module.double()


def data_of(name: str, seed: int, examples: int = 11, width: int = 4) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, width, generator=generator, dtype=torch.float64)
    return TensorData(name, inputs, torch.randint(0, 3, (examples,), generator=generator))


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def rows_of(data: TensorData) -> tuple[list[np.ndarray], list[int]]:
    """Inputs and labels in the order of the data."""
    batch = data.collate(range(len(data)))
    assert batch.labels is not None
    return list(batch.inputs["x"].numpy()), batch.labels.tolist()


def statistic(found: Any) -> dict[str, np.ndarray]:
    return {name: found[name].numpy() for name in found.index}


def same(ours: Mapping[str, Any], wanted: Mapping[str, np.ndarray]) -> None:
    assert set(ours) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(np.asarray(ours[name]), value, err_msg=name, **TIGHT)


def fitting_of(module: torch.nn.Module, tasks: Mapping[str, TaskData], seed: int = 42) -> Any:
    return module_fitting(module, tasks, seed)


@pytest.mark.parametrize(
    ("estimator", "batch_size", "expected"),
    [
        ("true", 1, [[0.196612, 0.393224], [0.196612, 0.393224]]),
        ("empirical", 1, [[0.072329, 0.144659], [0.072329, 0.144659]]),
        ("fusionbench", 1, [[0.022253, 0.044506], [0.022253, 0.044506]]),
        ("fusionbench", 2, [[0.0, 0.044506], [0.0, 0.044506]]),
    ],
)
def test_golden_estimators(estimator: Any, batch_size: int, expected: list[list[float]]) -> None:
    """G12."""
    module = torch.nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.eye(2))
    data = TensorData("t", torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64), [0, 1])
    checkpoint = MemoryCheckpoint.of_module(module)
    found = diagonal_fisher("t", checkpoint, fitting_of(module, {"t": data}), estimator, 256, batch_size)
    torch.testing.assert_close(found["weight"], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("estimator", ["true", "sampled", "empirical", "fusionbench"])
@pytest.mark.parametrize("examples", [11, 7])
def test_fisher(estimator: Any, examples: int) -> None:
    module, data = network(3), data_of("task", 5)
    found = diagonal_fisher(
        "task", MemoryCheckpoint.of_module(module), fitting_of(module, {"task": data}, 9), estimator, examples, 4
    )
    inputs, gold = rows_of(data)
    inputs, gold, params = inputs[:examples], gold[:examples], arrays(module)
    if estimator == "true":
        wanted = loops_fisher.true_fisher(loops_fisher.TANH, params, inputs)
    elif estimator == "empirical":
        wanted = loops_fisher.empirical_fisher(loops_fisher.TANH, params, inputs, gold)
    elif estimator == "fusionbench":
        wanted = loops_fisher.fusionbench_fisher(loops_fisher.TANH, params, inputs, 4)
    else:
        drawn = []
        for place, x in enumerate(inputs):
            bounds = np.cumsum(loops_fisher.softmax(loops_fisher.tanh_logits(params, x)))
            drawn.append(int(np.searchsorted(bounds, Random(f"fusion_bench/fisher/9/task/{place}").random())))
        assert len(set(drawn)) > 1
        wanted = loops_fisher.sampled_fisher(loops_fisher.TANH, params, inputs, drawn)
    same(statistic(found), wanted)
    assert found.record["examples"] == examples


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("weights", "exclude", "floor"), [(None, (), 1e-6), ((0.2, 0.5, 1.0), ("bias$",), 1e-3), (None, ("head",), 0.0)]
)
def test_fisher_merging(normalize: bool, weights: Any, exclude: tuple[str, ...], floor: float) -> None:
    models = {name: network(seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))}
    data = {name: data_of(name, seed) for name, seed in (("a", 4), ("b", 5), ("c", 6))}
    method = FisherMerging(
        weights=weights, exclude=exclude, minimal_fisher_weight=floor, normalize_fisher_weight=normalize
    )
    merged = fuse(method, models, data=data)
    fishers = [
        loops_fisher.true_fisher(loops_fisher.TANH, arrays(models[name]), rows_of(data[name])[0]) for name in models
    ]
    left_out = [name for name in fishers[0] if any(pattern.rstrip("$") in name for pattern in exclude)]
    wanted = loops_fisher.merge(
        [arrays(model) for model in models.values()], fishers, weights, floor, normalize, excluded=left_out
    )
    same(arrays(merged), wanted)


def padded(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of up to five vectors, with garbage where they are padded."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (count,), generator=generator)
    return torch.randn(count, 5, 4, generator=generator, dtype=torch.float64), torch.arange(5) < lengths[:, None]


class Pooled(torch.nn.Module):
    """Layers on every vector of a sequence; the first vector decides."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = network(seed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out[:, 0]


@pytest.mark.parametrize("count_padding", [False, True])
def test_grams_of_padded_sequences(count_padding: bool) -> None:
    import dataclasses

    inputs, mask = padded(9, 1)
    module = Pooled(2)
    data = TensorData("t", inputs, [0] * 9, masks={"tokens": mask})
    fitting = dataclasses.replace(fitting_of(module, {"t": data}), token_stream=lambda layer: "tokens")
    structure = Structure(linear=frozenset({"inner.hidden.weight", "inner.head.weight"}))
    checkpoint = MemoryCheckpoint.of_module(module)
    found = input_grams("t", checkpoint, fitting, structure, 256, 4, count_padding)
    batches, masks = list(inputs.numpy()), list(mask.numpy())
    layer = (arrays(module)["inner.hidden.weight"], arrays(module)["inner.hidden.bias"])
    hidden = loops_regmean.through(layer, batches, np.tanh)
    wanted = {
        "inner.hidden.weight": loops_regmean.gram(batches, masks, count_padding),
        "inner.head.weight": loops_regmean.gram(hidden, masks, count_padding),
    }
    same(statistic(found), wanted)


@pytest.mark.parametrize("ratio", [1.0, 0.95, 0.5, 0.0])
def test_regression(ratio: float) -> None:
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal((3, 6)) for _ in range(4)]
    grams = []
    for _ in weights:
        rows = generator.standard_normal((9, 6))
        grams.append(rows.T @ rows / 9)
    merged, how = regression(
        (torch.from_numpy(w).T for w in weights), (torch.from_numpy(g) for g in grams), ratio, True
    )
    assert how == "cholesky"
    np.testing.assert_allclose(merged.T.numpy(), loops_regmean.merge(weights, grams, ratio), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize("plus", [False, True])
def test_regmean_on_a_stack(alpha: float, plus: bool) -> None:
    def stack(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        linear, act = torch.nn.Linear, torch.nn.Tanh
        return torch.nn.Sequential(linear(4, 6), act(), linear(6, 5), act(), linear(5, 3), act()).double()

    models = {"a": stack(1), "b": stack(2)}
    data = {"a": data_of("a", 3, 30), "b": data_of("b", 4, 30)}
    method = (RegmeanPlusPlus if plus else Regmean)(reduce_non_diagonal_ratio=alpha, batch_size=7)
    merged = arrays(fuse(method, models, data=data))
    layers = [[(arrays(m)[f"{at}.weight"], arrays(m)[f"{at}.bias"]) for at in (0, 2, 4)] for m in models.values()]
    inputs = [[np.stack(rows_of(each)[0])] for each in data.values()]
    tell = loops_regmean.regmean_plus_plus if plus else loops_regmean.stacked
    for at, (weight, bias) in zip((0, 2, 4), tell(layers, inputs, np.tanh, alpha), strict=True):
        np.testing.assert_allclose(merged[f"{at}.weight"], weight, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(merged[f"{at}.bias"], bias, **TIGHT)


def output_gradients(
    module: torch.nn.Module, data: TensorData, network: loops_fisher.Network, layer: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The inputs of a layer and the gradients at its output: those of its bias."""
    inputs, gold = rows_of(data)
    params = arrays(module)
    gradients = [
        loops_fisher.log_probability_gradient(network, params, x, label)[f"{layer}.bias"]
        for x, label in zip(inputs, gold, strict=True)
    ]
    hidden = [np.tanh(params["hidden.weight"] @ x + params["hidden.bias"]) for x in inputs]
    return (inputs if layer == "hidden" else hidden), gradients


@pytest.mark.parametrize("layer", ["hidden", "head"])
def test_output_grams(layer: str) -> None:
    module, data = network(1), data_of("t", 2)
    structure = Structure(linear=frozenset({"hidden.weight", "head.weight"}))
    fitting = fitting_of(module, {"t": data})
    found = output_grams("t", MemoryCheckpoint.of_module(module), fitting, structure)
    _, gradients = output_gradients(module, data, loops_fisher.TANH, layer)
    wanted = loops_mats.outer_gram([np.stack(gradients)])
    np.testing.assert_allclose(found[f"{layer}.weight"].numpy(), wanted, **TIGHT)


@pytest.mark.parametrize("init", ["mean", "zeros", "pretrained", "task_arithmetic"])
@pytest.mark.parametrize(("metric", "jacobi"), [("gram", False), ("kfac", False), ("kfac", True)])
@pytest.mark.parametrize("iterations", [2, 300])
def test_mats(init: Any, metric: Any, jacobi: bool, iterations: int) -> None:
    models, base = {"a": network(1), "b": network(2)}, network(0)
    data = {"a": data_of("a", 3, 40), "b": data_of("b", 4, 40)}
    tolerance = 1e-10 if iterations > 2 else 0.0
    method = Mats(metric=metric, init=init, iterations=iterations, tolerance=tolerance, jacobi=jacobi)
    merged = arrays(fuse(method, models, base, data=data))
    for layer in ("hidden", "head"):
        rows = [
            output_gradients(m, d, loops_fisher.TANH, layer)
            for m, d in zip(models.values(), data.values(), strict=True)
        ]
        a = [loops_mats.outer_gram([np.stack(inputs)]) for inputs, _ in rows]
        b = [loops_mats.outer_gram([np.stack(gradients)]) for _, gradients in rows]
        weights = [arrays(m)[f"{layer}.weight"].T for m in models.values()]
        products = [loops_mats.kfac(x, y) for x, y in zip(a, b, strict=True)]
        if metric == "gram":
            products = [loops_mats.gram(x) for x in a]
        start = loops_mats.initial(weights, init, arrays(base)[f"{layer}.weight"].T)
        diagonal = loops_mats.kfac_diagonal(a, b) if jacobi else None
        wanted, _ = loops_mats.solve(weights, products, start, iterations, tolerance, diagonal)
        # The sum of an output's gradients over the classes is 0: rounding decides how far such directions move.
        np.testing.assert_allclose(merged[f"{layer}.weight"], wanted.T, rtol=1e-6, atol=1e-6)
    assert np.allclose(merged["head.bias"], (arrays(models["a"])["head.bias"] + arrays(models["b"])["head.bias"]) / 2)


def systems(count: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(7)
    a, b = (generator.standard_normal((count, 5, 5)), generator.standard_normal((count, 4, 4)))
    weights = generator.standard_normal((count, 5, 4))
    return [x.T @ x for x in a], [x.T @ x for x in b], list(weights)


def test_systems_solved_together_are_solved_as_alone() -> None:
    a, b, weights = systems(3)
    left, right = torch.from_numpy(np.stack(a)), torch.from_numpy(np.stack(b))
    sides = left @ torch.from_numpy(np.stack(weights)) @ right
    start = torch.zeros_like(sides)
    start[1] = torch.from_numpy(weights[1])
    solved = conjugate_gradient(lambda x: left @ x @ right, sides, start, 6, 1e-9)
    for at in range(3):
        product = loops_mats.kfac(a[at], b[at])
        wanted, norms = loops_mats.conjugate_gradient(product, sides[at].numpy(), start[at].numpy(), 6, 1e-9)
        np.testing.assert_allclose(solved.x[at].numpy(), wanted, rtol=1e-8, atol=1e-9)
        assert int(solved.steps[at]) == len(norms) - 1
        np.testing.assert_allclose(solved.norms[: len(norms), at].numpy(), norms, rtol=1e-6, atol=1e-9)
    assert solved.steps.tolist() == [6, 0, 6]


def test_every_sequence_of_models_gives_the_loops_sum() -> None:
    a, b, weights = systems(3)
    wanted = loops_mats.dense_kfac(weights, a, b)
    left, right = [torch.from_numpy(x) for x in a], [torch.from_numpy(x) for x in b]
    pairs: Sequence[Any] = list(zip(left, right, strict=True))

    def product(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([p @ x @ q for p, q in pairs]).sum(0)

    side = torch.stack([p @ torch.from_numpy(w) @ q for (p, q), w in zip(pairs, weights, strict=True)]).sum(0)
    solved = conjugate_gradient(product, side, torch.zeros_like(side), 500, 1e-13)
    np.testing.assert_allclose(solved.x.numpy(), wanted, rtol=1e-6, atol=1e-8)
