"""AdaMerging: gradients against autograd, trajectories against loops, laws, interruption, degeneration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import loops_adamerging as loops
import numpy as np
import pytest
import torch

from fusion_bench.api import fuse, inputs_of
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import ConfigError
from fusion_bench.fit import fit, module_fitting
from fusion_bench.fitting import Batch, TaskData
from fusion_bench.method import method_class
from fusion_bench.method.adaptation import learner_of
from fusion_bench.method.coefficients import CoefficientMerge
from fusion_bench.method.engine import MergedCheckpoint
from fusion_bench.modelpool.base import ModelPool
from fusion_bench.ops.products import entropy

LayerWise: Any = method_class("layer_wise_adamerging")
TaskWise: Any = method_class("task_wise_adamerging")
TaskArithmetic: Any = method_class("task_arithmetic")


class Net(torch.nn.Module):
    """tanh(x V + b) W."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.v = torch.nn.Parameter(torch.randn(3, 4, generator=generator, dtype=dtype))
        self.b = torch.nn.Parameter(torch.randn(4, generator=generator, dtype=dtype))
        self.w = torch.nn.Parameter(torch.randn(4, 3, generator=generator, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.tanh(x @ self.v + self.b) @ self.w
        return out


class Rows(TaskData):
    """Rows put to a network; after `fuse` batches the current is cut."""

    def __init__(self, name: str, count: int = 10, fuse: int | None = None, spread: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        self.name, self.facts, self.digest = name, {}, f"rows-{name}-{count}-{spread}"
        self.x = spread * torch.randn(count, 3, generator=generator, dtype=torch.float64)
        self.left = fuse

    def __len__(self) -> int:
        return len(self.x)

    def collate(self, places: Sequence[int]) -> Batch:
        if self.left is not None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        return Batch({"x": self.x[list(places)]}, tuple(places))

    def forward(self, module: Any, batch: Batch) -> None:
        self.logits(module, batch)

    def logits(self, module: Any, batch: Batch) -> torch.Tensor:
        out: torch.Tensor = module(batch.inputs["x"])
        return out

    def log_probs(self, module: Any, batch: Batch) -> torch.Tensor:
        return self.logits(module, batch).log_softmax(-1)

    def gold_log_prob(self, module: Any, batch: Batch) -> torch.Tensor:
        raise NotImplementedError


def models() -> tuple[dict[str, Net], Net]:
    base = Net(0)
    made = {}
    for number, name in enumerate("ab", 1):
        made[name] = Net(number)
        for own, under in zip(made[name].parameters(), base.parameters(), strict=True):
            own.data = under.data + 0.3 * own.data
    return made, base


def pool() -> tuple[ModelPool, Net]:
    made, base = models()
    states = {name: MemoryCheckpoint(net.state_dict()) for name, net in made.items()}
    return ModelPool(models=dict(states), base=MemoryCheckpoint(base.state_dict())), base


def fitted(method: Any, tasks: dict[str, TaskData] | None = None, **means: Any) -> Any:
    held, base = pool()
    inputs = inputs_of(method, held, threads=2, budget=means.pop("budget", 800 * 10**6))
    fitting = module_fitting(base, tasks or {name: Rows(name) for name in held.models})
    return fit(method, inputs, replace(fitting, **means))


def weights(found: Any) -> dict[str, torch.Tensor]:
    held, _ = pool()
    merged = MergedCheckpoint(found.method, inputs_of(found.method, held))
    return {name: merged[name] for name in merged}


@pytest.mark.parametrize("tie", ["none", "model"])
@pytest.mark.parametrize("plus_plus", [False, True])
def test_gradients_against_autograd_through_the_merge(tie: str, plus_plus: bool) -> None:
    held, base = pool()
    merging = CoefficientMerge(others=(0.4, 0.2), kept=0.5 if plus_plus else 1.0)
    inputs = inputs_of(merging, held)
    merging = replace(merging, trim=MergedCheckpoint(merging, inputs).prepare())
    learner = learner_of(merging, inputs, module_fitting(base, {}).load, tie, 1e-3, "none", False)
    x = Rows("a").x
    entropy(learner.module(x)).mean().backward()
    found: dict[int, torch.Tensor] = {}
    learner._move = lambda row, gradient: found.update({row: gradient})  # type: ignore[method-assign]
    learner.step()

    made, base = models()
    names = [name for name, _ in base.named_parameters()]
    vectors = [{n: (dict(m.named_parameters())[n] - dict(base.named_parameters())[n]).detach() for n in names}
               for m in made.values()]  # fmt: skip
    if plus_plus:
        plain = [{n: t.numpy() for n, t in net.state_dict().items()} for net in [*made.values(), base]]
        vectors = [{n: torch.tensor(v) for n, v in vector.items()}
                   for vector in loops.plus_plus(plain[:-1], plain[-1], 0.5)]  # fmt: skip
    factors = {name: torch.tensor([0.4, 0.2], dtype=torch.float64, requires_grad=True) for name in names}
    if tie == "model":
        factors = dict.fromkeys(names, factors["v"])
    merged = {
        name: dict(base.named_parameters())[name].detach()
        + sum(f * v[name] for f, v in zip(factors[name], vectors, strict=True))
        for name in names
    }
    entropy(torch.func.functional_call(base, merged, (x,))).mean().backward()
    for name in names:
        torch.testing.assert_close(found[learner.rows[name]], factors[name].grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer_wise", [True, False])
@pytest.mark.parametrize("objective", ["mean_entropy", "entropy_of_mean"])
@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_trajectory_against_loops(layer_wise: bool, objective: str, normalize: str) -> None:
    steps = 4
    kind = LayerWise if layer_wise else TaskWise
    method = kind(steps=steps, batch_size=3, lr=0.05, objective=objective, normalize=normalize)
    found = fitted(method).record["coefficients"]
    made, base = models()
    plain = {name: {n: t.numpy() for n, t in net.state_dict().items()} for name, net in made.items()}
    under = {n: t.numpy() for n, t in base.state_dict().items()}
    vectors = loops.task_vectors(list(plain.values()), under)
    data = {name: Rows(name) for name in made}
    stream = [[d.batch_at(step, 3, 42).inputs["x"].numpy() for d in data.values()] for step in range(steps)]

    def network(params: Any, x: np.ndarray) -> np.ndarray:
        out: np.ndarray = np.tanh(x @ params["v"] + params["b"]) @ params["w"]
        return out

    start = 0.3 if normalize == "none" else float(np.log(0.3))
    expected = loops.trajectory(
        under, vectors, [network] * 2, stream, layer_wise=layer_wise, init=start, lr=0.05, objective=objective,
        constraint=normalize,
    )[-1]  # fmt: skip
    expected = loops.effective(expected, normalize)
    for name, values in expected.items():
        own = found["by_tensor"][name] if layer_wise else found["others"]
        np.testing.assert_allclose(own, values, rtol=1e-6)


def test_clamped_coefficients_stay_between_0_and_1() -> None:
    method = LayerWise(steps=6, batch_size=4, lr=0.5, clamp_weights=True)
    found = fitted(method).record
    assert 0 <= found["range"][0] <= found["range"][1] <= 1
    free = fitted(replace(method, clamp_weights=False)).record
    assert free["range"][0] < 0 or free["range"][1] > 1


def test_no_step_is_task_arithmetic() -> None:
    made, base = models()
    states = {name: net.state_dict() for name, net in made.items()}
    expected = fuse(TaskArithmetic(scaling_factor=0.3), states, base.state_dict())
    for kind in (LayerWise, TaskWise):
        for name, tensor in weights(fitted(kind(steps=0))).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12)


def test_tied_rows_are_task_wise() -> None:
    layer = fitted(LayerWise(steps=5, batch_size=4, lr=0.01, tie="model")).record["coefficients"]
    task = fitted(TaskWise(steps=5, batch_size=4, lr=0.01)).record["coefficients"]
    assert layer == task
    assert layer["others"] != [0.3, 0.3]


def test_a_small_budget_reads_twice_and_changes_nothing() -> None:
    method = LayerWise(steps=5, batch_size=4, lr=0.01)
    roomy = fitted(method).record["coefficients"]
    held, base = pool()
    inputs = inputs_of(method, held)
    # Less than the fixed costs: no tensor may be held for every model.
    narrow = replace(inputs, budget=0)
    fitting = module_fitting(base, {name: Rows(name) for name in held.models})
    assert method.fit(narrow, fitting).record["coefficients"] == roomy


def test_saved_coefficients_reproduce_the_model(tmp_path: Path) -> None:
    learnt = fitted(LayerWise(steps=5, batch_size=4, lr=0.01))
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"run": {"fit": dict(learnt.record)}}))
    again = fitted(LayerWise(steps=0, init=str(report)))
    for name, tensor in weights(learnt).items():
        assert torch.equal(tensor, weights(again)[name])


def test_coefficients_of_other_models_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"models": ["a", "z"], "others": [0.1, 0.2], "by_tensor": {}}))
    with pytest.raises(ConfigError, match=r"none for b"):
        fitted(LayerWise(steps=0, init=str(file)))
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"no coefficients"):
        fitted(LayerWise(steps=0, init=str(file)))
    with pytest.raises(ConfigError, match=r"missing\.json"):
        fitted(LayerWise(steps=0, init=str(tmp_path / "missing.json")))


def test_an_interrupted_adaptation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion_bench.method.adaptation_state._INTERVAL", 0.0)
    method = LayerWise(steps=8, batch_size=4, lr=0.01)
    means: dict[str, Any] = {"identity": {"a": 1}, "cache": tmp_path / "cache"}
    whole = fitted(method, identity={"a": 2}, cache=tmp_path / "other").record
    with pytest.raises(KeyboardInterrupt):
        fitted(method, {"a": Rows("a", fuse=5), "b": Rows("b")}, **means)
    # The rest alone is left: three of eight steps.
    rest = {"a": Rows("a", fuse=3), "b": Rows("b")}
    resumed = fitted(method, rest, **means).record
    assert rest["a"].left == 0
    assert resumed["coefficients"] == whole["coefficients"]
    assert resumed["curves"] == whole["curves"]


def test_entropy_does_not_rise_on_its_stream() -> None:
    curves = fitted(LayerWise(steps=60, batch_size=10, lr=0.01)).record["curves"]["entropy"]
    for points in curves.values():
        assert points[-1][1] < points[0][1]


def test_a_collapse_is_said() -> None:
    """Large steps drive most predictions into one class while the entropy falls; two small ones do not."""
    tasks = {name: Rows(name, 40) for name in "ab"}
    found = fitted(TaskWise(steps=40, batch_size=16, lr=0.5), dict(tasks))
    assert found.record["most_common_share"]["last"]["a"] > 0.9
    assert any(line.startswith("a: the adaptation degenerated: 91 %") for line in found.remarks)
    assert not fitted(TaskWise(steps=2, batch_size=16), dict(tasks)).remarks


def test_data_are_required() -> None:
    with pytest.raises(ConfigError, match="looks at data"):
        fuse(LayerWise(), [net.state_dict() for net in models()[0].values()], models()[1].state_dict())
    with pytest.raises(ConfigError, match="no data for b"):
        fitted(LayerWise(), {"a": Rows("a")})


def test_label_outputs_restrict_the_entropy() -> None:
    free = fitted(LayerWise(steps=3, batch_size=4, lr=0.01)).record
    tasks = {name: Rows(name) for name in "ab"}
    for data in tasks.values():
        data.label_outputs = [0, 2]
    assert fitted(LayerWise(steps=3, batch_size=4, lr=0.01), dict(tasks)).record["curves"] == free["curves"]
    bound = fitted(LayerWise(steps=3, batch_size=4, lr=0.01, vocabulary="labels"), dict(tasks)).record
    x = tasks["a"].batch_at(0, 4, 42).inputs["x"]
    held, base = pool()
    made = module_fitting(base, {}).load(MergedCheckpoint(
        CoefficientMerge(others=(0.3, 0.3)), inputs_of(CoefficientMerge(others=(0.3, 0.3)), held)))  # fmt: skip
    expected = np.mean([loops.entropy_of(row, [0, 2]) for row in made(x).detach().numpy()])
    assert bound["curves"]["entropy"]["a"][0][1] == pytest.approx(expected, abs=1e-6)
