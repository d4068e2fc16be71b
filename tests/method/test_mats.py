"""MaTS: the golden vector, the laws, what conjugate gradients do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_bench.api import fuse, inputs_of
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.writer import save
from fusion_bench.errors import AlignmentError, ConfigError
from fusion_bench.fit import fit, module_fitting
from fusion_bench.method.engine import MergedCheckpoint
from fusion_bench.method.merging.fisher_merging import FisherMerging
from fusion_bench.method.merging.mats import Mats
from fusion_bench.method.merging.regmean import Regmean
from fusion_bench.method.solved_conjugate import SolvedConjugate
from fusion_bench.modelpool.base import ModelPool
from fusion_bench.statistics import Statistics
from fusion_bench.tensor_data import TensorData

A = ([[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 3.0]])
B = ([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
W = ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0], [1.0, -1.0]])


def matrix(rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def merged(scale: float = 1.0, weights: Any = W, **fields: Any) -> tuple[torch.Tensor, dict[str, Any], list[str]]:
    """The merge of the golden system, its log, and its remarks."""

    def measured(matrices: Any) -> dict[str, Statistics]:
        return {f"m{i}": Statistics.of({"w.weight": matrix(x) * scale**0.5}) for i, x in enumerate(matrices)}

    log: dict[str, Any] = {}
    pool = ModelPool({f"m{i}": MemoryCheckpoint({"w.weight": matrix(w)}) for i, w in enumerate(weights)})
    method = SolvedConjugate(
        statistics=measured(A[: len(weights)]), outputs=measured(B[: len(weights)]), log=log, **fields
    )
    fused = MergedCheckpoint(method, inputs_of(method, pool))
    return fused["w.weight"], log["w.weight"], fused.remarks()


CLOSE: Any = {"atol": 1e-6, "rtol": 0}


def test_golden() -> None:
    """G11: the solution, the first steps from the mean and from zero, the residuals."""
    solution = matrix([[0.471816, 0.661795], [0.450939, 0.411273], [1.428571, -0.285714]])
    found, note, _ = merged(tolerance=1e-12)
    torch.testing.assert_close(found, solution, **CLOSE)
    assert note["residuals"][:6] == pytest.approx(
        [1.870829, 0.828862, 0.131354, 0.037392, 0.007435, 0.000215], abs=1e-6
    )
    one = matrix([0.5, 0.71875, 0.390625, 0.390625, 1.21875, -0.21875]).reshape(3, 2)
    torch.testing.assert_close(merged(iterations=1)[0], one, **CLOSE)
    two = matrix([0.471951, 0.660899, 0.461624, 0.405526, 1.413341, -0.301144]).reshape(3, 2)
    torch.testing.assert_close(merged(iterations=2)[0], two, **CLOSE)
    zero = matrix([0.271838, 0.634289, 0.362451, 0.634289, 0.362451, 0.0]).reshape(3, 2)
    torch.testing.assert_close(merged(iterations=1, init="zeros")[0], zero, **CLOSE)


def test_the_start_does_not_matter_at_the_end() -> None:
    torch.testing.assert_close(merged(tolerance=1e-13)[0], merged(tolerance=1e-13, init="zeros")[0])
    torch.testing.assert_close(merged(tolerance=1e-13)[0], merged(tolerance=1e-13, jacobi=True)[0])


@pytest.mark.parametrize("scale", [1e-30, 1e20])
def test_common_factors_change_nothing(scale: float) -> None:
    """Gradients of confident models are so small that their products leave float32."""
    found, note, _ = merged(scale=scale)
    torch.testing.assert_close(found, merged()[0], rtol=1e-9, atol=1e-12)
    assert note["residuals"][0] == pytest.approx(1.870829 * scale, rel=1e-5)


def test_no_step_from_the_solution() -> None:
    found, note, _ = merged(weights=W[:1])
    assert torch.equal(found, matrix(W[0]))
    assert note["steps"] == 0


def test_remarks_tell_which_layers_are_not_done() -> None:
    assert any("1 of 1 layers reached" in remark for remark in merged()[2])
    assert any("0 of 1 layers reached" in remark and "w.weight" in remark for remark in merged(iterations=2)[2])


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()


def points(name: str, seed: int, width: int = 4) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, width, generator=generator, dtype=torch.float64)
    return TensorData(name, inputs, torch.randint(0, 3, (40,), generator=generator))


def data(*names: str) -> dict[str, Any]:
    return {name: points(name, seed) for seed, name in enumerate(names)}


def state(method: Any, models: Any, base: Any = None) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = fuse(method, models, base, data=data(*models)).state_dict()
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance: float) -> None:
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


@pytest.mark.parametrize("metric", ["identity", "diag_fisher", "gram", "kfac"])
def test_one_model_and_equal_models(metric: Any) -> None:
    for names in (["a"], ["a", "b", "c"]):
        same(
            state(Mats(metric=metric), dict.fromkeys(names, network(1))), network(1).state_dict(), rtol=1e-9, atol=1e-12
        )


def test_relations_to_other_methods() -> None:
    models = {"a": network(1), "b": network(2)}
    steps = state(Mats(metric="gram", tolerance=1e-12), models)
    close: Any = {"rtol": 1e-7, "atol": 1e-9}
    same(steps, state(Regmean(reduce_non_diagonal_ratio=1.0), models), **close)
    same(steps, state(Mats(metric="gram", solver="closed"), models), **close)
    mean = {name: (tensor + network(2).state_dict()[name]) / 2 for name, tensor in network(1).state_dict().items()}
    same(state(Mats(metric="identity"), models), mean)
    same(state(Mats(iterations=0), models), mean)
    diagonal = state(Mats(metric="diag_fisher", estimator="true"), models)
    plain = FisherMerging(normalize_fisher_weight=False, minimal_fisher_weight=1e-12, exclude=("bias",), examples=1000)
    same(diagonal, state(plain, models), rtol=1e-6, atol=1e-8)


def test_where_the_steps_begin(tmp_path: Path) -> None:
    base, models = network(0), {"a": network(1), "b": network(2)}
    weights = [m.state_dict()["0.weight"] for m in (base, *models.values())]

    def begun(**fields: Any) -> torch.Tensor:
        return state(Mats(metric="gram", iterations=0, **fields), models, base)["0.weight"]

    assert torch.equal(begun(init="zeros"), torch.zeros(6, 4, dtype=torch.float64))
    assert torch.equal(begun(init="pretrained"), weights[0])
    wanted = weights[0] + 0.4 * (weights[1] - weights[0] + weights[2] - weights[0])
    torch.testing.assert_close(begun(init="task_arithmetic", init_scaling_factor=0.4), wanted)
    save(MemoryCheckpoint.of_module(network(7)), tmp_path / "start")
    torch.testing.assert_close(begun(init="path", path=str(tmp_path / "start")), network(7).state_dict()["0.weight"])


def test_dead_inputs_keep_their_start() -> None:
    models = {"a": network(1), "b": network(2)}
    zeroed = {name: each.collate(range(40)).inputs["x"] for name, each in data("a", "b").items()}
    for inputs in zeroed.values():
        inputs[:, 2] = 0
    dead = {name: TensorData(name, inputs, [0, 1] * 20) for name, inputs in zeroed.items()}
    for method in (Mats(metric="gram"), Mats(metric="kfac"), Mats(metric="gram", solver="closed")):
        found = fuse(method, models, data=dead)[0].weight.detach()
        mean = (models["a"][0].weight + models["b"][0].weight).detach() / 2  # type: ignore[index, union-attr, operator]
        torch.testing.assert_close(found[:, 2], mean[:, 2])
        assert not torch.allclose(found[:, 0], mean[:, 0], atol=1e-3)


class Scaled(torch.nn.Module):
    """A frozen layer whose outputs a vector scales, as (IA)^3 does."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)
        torch.manual_seed(seed)
        self.ia3_l = torch.nn.Parameter(1 + 0.3 * torch.randn(5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(self.layer(x) * self.ia3_l[:, 0]))
        return out


@pytest.mark.parametrize("solver", ["cg", "closed"])
@pytest.mark.parametrize("estimator", ["empirical", "true"])
def test_vectors_of_ia3(solver: Any, estimator: Any) -> None:
    """The whole Fisher information of each vector, against one backward an example and class."""
    models = {"a": Scaled(1).double(), "b": Scaled(2).double()}
    examples = data("a", "b")
    found = fuse(Mats(metric="ia3_block", solver=solver, estimator=estimator, tolerance=1e-12), models, data=examples)
    left, right = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for name, model in models.items():
        fisher = torch.zeros(5, 5, dtype=torch.float64)
        for place in range(40):
            batch = examples[name].collate([place])
            logs = examples[name].log_probs(model, batch)[0]
            for number, log in enumerate(logs):
                weight = float(log.detach().exp()) if estimator == "true" else float(number == int(batch.labels[0]))
                gradient = torch.autograd.grad(log, model.ia3_l, retain_graph=True)[0].reshape(-1)
                fisher += weight * torch.outer(gradient, gradient) / 40
        left += fisher
        right += fisher @ model.ia3_l.detach().reshape(-1)
    torch.testing.assert_close(found.ia3_l.detach()[:, 0], torch.linalg.solve(left, right), rtol=1e-6, atol=1e-8)
    assert found.ia3_l.shape == (5, 1)


def test_what_is_recorded() -> None:
    pool = ModelPool({name: MemoryCheckpoint.of_module(network(seed)) for name, seed in (("a", 1), ("b", 2))})
    method = Mats(iterations=3)
    inputs = inputs_of(method, pool)
    fitted = fit(method, inputs, module_fitting(network(0), data("a", "b")))
    assert fitted.record["layers"] == {}
    fused = MergedCheckpoint(fitted.method, inputs)  # type: ignore[arg-type]
    for name in fused:
        fused.read(name)
    assert set(fitted.record["layers"]) == {"0.weight", "2.weight"}
    assert all(len(note["residuals"]) == note["steps"] + 1 for note in fitted.record["layers"].values())
    assert fitted.record["output_statistics"]["a"]["examples"] == 40


def test_facts_follow_the_hyperparameters() -> None:
    assert Mats().reads_labels
    assert Mats().gradients
    assert not Mats().needs_base
    assert not Mats(metric="gram").reads_labels
    assert not Mats(metric="gram").gradients
    assert not Mats(estimator="sampled").reads_labels
    assert Mats(init="task_arithmetic").needs_base


def test_faults(tmp_path: Path) -> None:
    models = {"a": network(1), "b": network(2)}
    with pytest.raises(ConfigError, match=r"method\.path"):
        Mats(init="path")
    with pytest.raises(ConfigError, match=r"method\.path"):
        Mats(path="somewhere")
    with pytest.raises(ConfigError, match=r"method\.solver=closed"):
        Mats(solver="closed")
    with pytest.raises(ConfigError, match="base"):
        fuse(Mats(init="pretrained"), [network(1)], data=data("model_0"))
    with pytest.raises(ConfigError, match="ia3_block"):
        fuse(Mats(metric="ia3_block"), models, data=data("a", "b"))
    save(MemoryCheckpoint({"0.weight": torch.zeros(2, 2)}), tmp_path / "other")
    with pytest.raises(AlignmentError, match=r"method\.path.*lacks 4 tensors"):
        fuse(Mats(init="path", path=str(tmp_path / "other")), models, data=data("a", "b"))


def test_operations_by_hand() -> None:
    """A 6 x 4 layer of two models: products of kfac cost 2 N (d^2 m + d m^2), those of gram 2 d^2 m."""
    pool = ModelPool({name: MemoryCheckpoint.of_module(network(seed)) for name, seed in (("a", 1), ("b", 2))})

    def counted(method: Mats) -> float:
        inputs = inputs_of(method, pool)
        return method.preview().operations("0.weight", inputs) - method.preview().operations("0.bias", inputs) * 4

    assert counted(Mats(iterations=10)) == 12 * 2 * 2 * (96 + 144) + 10 * 10 * 24
    assert counted(Mats(iterations=10, metric="gram")) == 12 * 2 * 96 + 10 * 10 * 24
    assert counted(Mats(metric="gram", solver="closed")) == pytest.approx(2 * 96 * 4 + 64 / 3)
