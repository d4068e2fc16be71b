"""RegMean and RegMean++: the golden vector and the laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_bench.api import fuse, inputs_of
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import NonFiniteError
from fusion_bench.fit import fit, module_fitting
from fusion_bench.method.engine import MergedCheckpoint
from fusion_bench.method.merging.regmean import Regmean
from fusion_bench.method.merging.regmean_plus_plus import RegmeanPlusPlus
from fusion_bench.method.solved_regression import SolvedRegression
from fusion_bench.modelpool.base import ModelPool
from fusion_bench.statistics import Statistics
from fusion_bench.tensor_data import TensorData

G1, G2 = [[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 3.0]]
W1, W2 = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0], [1.0, -1.0]]

BOTH = pytest.mark.parametrize("kind", [Regmean, RegmeanPlusPlus])


def matrix(rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def solved(weights: Any, grams: Any, ratio: float) -> torch.Tensor:
    statistics = {f"model_{i}": Statistics.of({"w.weight": matrix(g)}) for i, g in enumerate(grams)}
    method = SolvedRegression(statistics=statistics, ratio=ratio)
    merged: torch.Tensor = fuse(method, [{"w.weight": matrix(w)} for w in weights])["w.weight"]
    return merged


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1.0, [[0.428571, 0.714286], [0.571429, 0.285714], [1.428571, -0.285714]]),
        (0.5, [[0.559322, 0.644068], [0.440678, 0.355932], [1.203390, -0.220339]]),
        (0.0, [[0.666667, 0.6], [0.333333, 0.4], [1.0, -0.2]]),
    ],
)
def test_golden(ratio: float, expected: list[list[float]]) -> None:
    """G10."""
    torch.testing.assert_close(solved((W1, W2), (G1, G2), ratio), matrix(expected), atol=1e-6, rtol=0)


def test_laws_of_the_solution() -> None:
    torch.testing.assert_close(solved((W1, W2), (G1, G1), 0.7), (matrix(W1) + matrix(W2)) / 2)
    assert torch.equal(solved((W1,), (G1,), 0.95), matrix(W1))
    hundred = [[[100 * e for e in row] for row in g] for g in (G1, G2)]
    torch.testing.assert_close(solved((W1, W2), hundred, 0.9), solved((W1, W2), (G1, G2), 0.9))
    # Input spaces at right angles: each model is kept on its own.
    kept = solved((W1, W2), ([[3.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]]), 1.0)
    torch.testing.assert_close(kept, torch.stack([matrix(W1)[:, 0], matrix(W2)[:, 1]], 1))


def test_directions_that_no_input_shows_stay_the_mean() -> None:
    merged = solved((W1, W2), ([[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]), 1.0)
    torch.testing.assert_close(merged[:, 1], (matrix(W1) + matrix(W2))[:, 1] / 2)
    torch.testing.assert_close(merged[:, 0], (2 * matrix(W1)[:, 0] + matrix(W2)[:, 0]) / 3)


def test_least_squares_where_the_sum_is_not_positive_definite() -> None:
    """Rounding can give a Gram a negative eigenvalue; the way out is told."""
    grams = [matrix([[1.0, 1.0], [1.0, 1.0 - 1e-7]])]
    statistics = {"a": Statistics.of({"w.weight": grams[0]}), "b": Statistics.of({"w.weight": grams[0]})}
    pool = ModelPool({name: MemoryCheckpoint({"w.weight": matrix(w)}) for name, w in (("a", W1), ("b", W2))})
    log: dict[str, Any] = {}
    method = SolvedRegression(statistics=statistics, log=log)
    merged = MergedCheckpoint(method, inputs_of(method, pool))
    torch.testing.assert_close(merged["w.weight"], (matrix(W1) + matrix(W2)) / 2)
    assert log == {"w.weight": "least squares"}
    assert any("least squares" in remark and "w.weight" in remark for remark in merged.remarks())


def stack(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    linear, act = torch.nn.Linear, torch.nn.Tanh
    return torch.nn.Sequential(linear(4, 6), act(), linear(6, 5), act(), linear(5, 3)).double()


def points(name: str, seed: int, examples: int = 40, **fields: Any) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 4, generator=generator, dtype=torch.float64)
    return TensorData(name, inputs, torch.randint(0, 3, (examples,), generator=generator), **fields)


def data(*names: str) -> dict[str, Any]:
    return {name: points(name, seed) for seed, name in enumerate(names)}


@BOTH
def test_one_model_and_equal_models(kind: Any) -> None:
    model = stack(1)
    for names in (["a"], ["a", "b", "c"]):
        merged = fuse(kind(), dict.fromkeys(names, model), data=data(*names)).state_dict()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(merged[name], tensor, rtol=1e-9, atol=1e-12)


def test_the_objective_is_least_where_alpha_is_one() -> None:
    models, examples = {"a": stack(1), "b": stack(2)}, data("a", "b")
    merged = fuse(Regmean(reduce_non_diagonal_ratio=1.0), models, data=examples)[0].weight.detach().requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    for name, model in models.items():
        x = examples[name].collate(range(40)).inputs["x"]
        weight = model[0].weight.detach()  # type: ignore[index, union-attr, operator]
        total = total + ((merged - weight) @ x.T).square().sum() / 40
    gradient = torch.autograd.grad(total, merged)[0]
    assert float(gradient.abs().max()) < 1e-9 * float(total.detach())


def test_without_off_diagonals_each_column_is_a_weighted_mean() -> None:
    models, examples = {"a": stack(1), "b": stack(2)}, data("a", "b")
    merged = fuse(Regmean(reduce_non_diagonal_ratio=0.0), models, data=examples)[0].weight.detach()
    squares = [examples[name].collate(range(40)).inputs["x"].square().mean(0) for name in models]
    weights = [model[0].weight.detach() for model in models.values()]  # type: ignore[index, union-attr, operator]
    wanted = (weights[0] * squares[0] + weights[1] * squares[1]) / (squares[0] + squares[1])
    torch.testing.assert_close(merged, wanted)


def test_a_single_layer_is_merged_alike_by_both() -> None:
    models = {name: stack(seed)[:1] for name, seed in (("a", 1), ("b", 2))}  # type: ignore[index]
    one, other = (fuse(kind(), models, data=data("a", "b")).state_dict() for kind in (Regmean, RegmeanPlusPlus))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-12, atol=1e-14)
    models = {name: stack(seed) for name, seed in (("a", 1), ("b", 2))}
    one, other = (fuse(kind(), models, data=data("a", "b")).state_dict() for kind in (Regmean, RegmeanPlusPlus))
    torch.testing.assert_close(one["0.weight"], other["0.weight"])
    assert not torch.allclose(one["2.weight"], other["2.weight"], atol=1e-4)


def test_forwards_of_the_layerwise_method_end_early() -> None:
    """Modules behind the block that is looked at do not run, whatever the data."""
    ran: list[int] = []

    class Last(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(len(x))
            return x

    def make(seed: int) -> torch.nn.Module:
        return torch.nn.Sequential(*stack(seed), Last())  # type: ignore[misc]

    fuse(RegmeanPlusPlus(batch_size=40), {"a": make(1), "b": make(2)}, data=data("a", "b"))
    # The one example on which the blocks are found.
    assert ran == [1]


@BOTH
def test_cached_solutions_and_grams(kind: Any, tmp_path: Any) -> None:
    from dataclasses import replace

    models = {"a": stack(1), "b": stack(2)}
    pool = ModelPool({name: MemoryCheckpoint.of_module(m) for name, m in models.items()})
    fitting = replace(module_fitting(stack(0), data("a", "b")), identity={"a": "a", "b": "b"}, cache=tmp_path)
    inputs = inputs_of(kind(), pool)
    first = fit(kind(), inputs, fitting)

    def refuse(checkpoint: Any) -> Any:
        raise AssertionError("a model was made live")

    second = fit(kind(), inputs, replace(fitting, load=refuse))
    merges = [MergedCheckpoint(fitted.method, inputs) for fitted in (first, second)]  # type: ignore[arg-type]
    for name in merges[0]:
        assert torch.equal(merges[0][name], merges[1][name])


@BOTH
def test_what_is_not_a_number_is_refused(kind: Any) -> None:
    models = {"a": stack(1), "b": stack(2)}
    with torch.no_grad():
        models["b"][2].weight[1, 1] = torch.nan  # type: ignore[index, union-attr]
    with pytest.raises(NonFiniteError, match=r"'b'.*'2\.weight'"):
        fuse(kind(), models, data=data("a", "b"))
    bad = TensorData("a", torch.full((3, 4), torch.nan, dtype=torch.float64), [0, 1, 2])
    with pytest.raises(NonFiniteError, match="inputs of"):
        fuse(kind(), {"a": stack(1)}, data={"a": bad})


@BOTH
def test_a_layer_of_one_input_or_one_output(kind: Any) -> None:
    def make(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Tanh(), torch.nn.Linear(1, 3)).double()

    models = {"a": make(1), "b": make(2)}
    merged = fuse(kind(reduce_non_diagonal_ratio=1.0), models, data=data("a", "b")).state_dict()
    examples = data("a", "b")
    sums = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    for name, model in models.items():
        x = examples[name].collate(range(40)).inputs["x"]
        sums[0].add_(x.T @ x / 40)
        sums[1].add_(x.T @ x / 40 @ model[0].weight.detach().T)  # type: ignore[index, union-attr, operator]
    torch.testing.assert_close(merged["0.weight"], torch.linalg.solve(*sums).T, rtol=1e-7, atol=1e-9)
    assert merged["2.weight"].shape == (3, 1)
