"""The diagonal Fisher information: tied parameters, classes, what a pass costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from statistics_cases import Questions, gpt2, mlp, points, sentences, t5_fitting

from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import DataError, NonFiniteError
from fusion_bench.fit import module_fitting
from fusion_bench.statistics import diagonal_fisher
from fusion_bench.tensor_data import TensorData


def by_autograd(module: Any, data: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Sum over examples and classes of p times the square of the gradient of log p, one backward each."""
    parameters = dict(module.named_parameters())
    wanted = [parameters[name].requires_grad_(True) for name in names]
    totals = {name: torch.zeros_like(parameters[name]) for name in names}
    for place in range(len(data)):
        logs = data.log_probs(module, data.collate([place]))[0]
        for log in logs:
            found = torch.autograd.grad(log, wanted, retain_graph=True, allow_unused=True)
            for name, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    totals[name] += log.detach().exp() * gradient**2 / len(data)
    return totals


@pytest.mark.parametrize("untied", [True, False])
def test_t5_with_tied_parameters(tiny: Any, untied: bool) -> None:
    """The embedding serves encoder, decoder and, tied, the output: one parameter, whose gradient is their sum."""
    model = tiny.t5(3, untied=untied).double()
    data = Questions("q", 1)
    checkpoint = MemoryCheckpoint.of_module(model)
    found = diagonal_fisher("q", checkpoint, t5_fitting({"q": data}))
    assert set(found.index) == set(checkpoint.infos)
    assert ("lm_head.weight" in found.index) == untied
    wanted = by_autograd(model, data, [name for name, _ in model.named_parameters()])
    assert len(wanted) == len(found.index)
    for name, value in wanted.items():
        torch.testing.assert_close(found[checkpoint.stored(name)], value, rtol=1e-6, atol=1e-12)
    assert float(wanted["shared.weight"].sum()) > 0


def test_gpt2() -> None:
    model, data = gpt2(1), sentences("s", 2, 5)
    found = diagonal_fisher("s", MemoryCheckpoint.of_module(model), module_fitting(model, {"s": data}))
    wanted = by_autograd(model, data, [name for name, _ in model.named_parameters()])
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-14)


def test_cost_is_counted_by_hand() -> None:
    """Weights of 24 and 18 entries: 84 operations forward, 168 a backward, one fewer of them than classes."""
    module, data = mlp(0), points("p", 1, 20)
    fitting, checkpoint = module_fitting(module, {"p": data}), MemoryCheckpoint.of_module(mlp(0))
    for examples in (5, 10):
        record = diagonal_fisher("p", checkpoint, fitting, "true", examples).record
        assert record["flops"] == examples * (84 + 2 * 168)
        record = diagonal_fisher("p", checkpoint, fitting, "empirical", examples).record
        assert record["flops"] == examples * (84 + 168)
    assert record["bytes"] == 8 * (24 + 6 + 18 + 3)


def test_draws_depend_on_the_seed_alone() -> None:
    module, data = mlp(0), points("p", 1)
    checkpoint = MemoryCheckpoint.of_module(module)

    def found(seed: int, examples: int) -> torch.Tensor:
        return diagonal_fisher("p", checkpoint, module_fitting(module, {"p": data}, seed), "sampled", examples)[
            "0.weight"
        ]

    assert torch.equal(found(1, 20), found(1, 20))
    assert not torch.allclose(found(1, 20), found(2, 20))


def test_a_class_of_probability_zero() -> None:
    """It counts for nothing, and its infinite log-probability harms no other."""

    def masked(module: Any, inputs: Any) -> torch.Tensor:
        logits = module(inputs["x"])
        return logits.masked_fill(torch.tensor([False, True, False]), -torch.inf)

    def dropped(module: Any, inputs: Any) -> torch.Tensor:
        return module(inputs["x"])[:, [0, 2]]

    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for forward in (masked, dropped):
        data = TensorData("p", inputs, [0] * 6, forward)
        checkpoint = MemoryCheckpoint.of_module(mlp(1))
        found.append(
            [
                diagonal_fisher("p", checkpoint, module_fitting(mlp(1), {"p": data}), kind)
                for kind in ("true", "sampled", "fusionbench")
            ]
        )
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours["0.weight"], wanted["0.weight"])
        assert float(ours["0.weight"].abs().sum()) > 0


def test_no_gradient_is_left_behind() -> None:
    module, data = mlp(0), points("p", 1, 4)
    live: list[torch.nn.Module] = []

    def load(checkpoint: Any) -> torch.nn.Module:
        live.append(module.requires_grad_(False))
        return module

    import dataclasses

    fitting = dataclasses.replace(module_fitting(module, {"p": data}), load=load)
    diagonal_fisher("p", MemoryCheckpoint.of_module(module), fitting)
    assert all(p.grad is None and not p.requires_grad for p in live[0].parameters())


def test_what_is_not_a_number_is_refused() -> None:
    module = mlp(0)
    fitting = module_fitting(module, {"p": points("p", 1, 4)})
    broken = mlp(0)
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.nan  # type: ignore[index, union-attr]
    with pytest.raises(NonFiniteError, match=r"'p'.*'2\.weight'"):
        diagonal_fisher("p", MemoryCheckpoint.of_module(broken), fitting)
    infinite = TensorData("p", torch.full((3, 4), torch.inf, dtype=torch.float64), [0, 1, 2])
    with pytest.raises(NonFiniteError, match="outputs"):
        diagonal_fisher("p", MemoryCheckpoint.of_module(module), module_fitting(module, {"p": infinite}))


def test_log_probabilities_must_be_normalised() -> None:
    class Raw(TensorData):  # type: ignore[misc]
        def log_probs(self, module: Any, batch: Any) -> torch.Tensor:
            return self.logits(module, batch)

    data = Raw("p", torch.randn(3, 4, dtype=torch.float64), [0, 1, 2])
    with pytest.raises(DataError, match="sum to"):
        diagonal_fisher("p", MemoryCheckpoint.of_module(mlp(0)), module_fitting(mlp(0), {"p": data}))


def test_a_file_that_stores_a_tied_tensor_once(tiny: Any) -> None:
    """Without aliases the module's further names of it are unknown: it counts once, under the name in the file."""
    model, data = tiny.t5(3, untied=False).double(), Questions("q", 1)
    state = model.state_dict()
    whole = diagonal_fisher("q", MemoryCheckpoint.of_module(model), t5_fitting({"q": data}))
    kept = {name: state[name] for name in whole.index}
    config = model.config.to_dict()
    found = diagonal_fisher("q", MemoryCheckpoint(kept, config), t5_fitting({"q": data}))
    assert set(found.index) == set(whole.index)
    assert torch.equal(found["shared.weight"], whole["shared.weight"])
    renamed = {"encoder.embed_tokens.weight" if name == "shared.weight" else name: kept[name] for name in kept}
    found = diagonal_fisher("q", MemoryCheckpoint(renamed, config), t5_fitting({"q": data}))
    assert set(found.index) == set(renamed)
    assert torch.equal(found["encoder.embed_tokens.weight"], whole["shared.weight"])
