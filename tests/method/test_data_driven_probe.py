"""The core carries methods that look at data: what they need of it is there without a special case.

Two such methods are told here in a few lines over the embedded pool: merging weighted by diagonal Fisher information
(arXiv 2111.09832) and coefficients for every model and tensor learnt from gradients (AdaMerging, arXiv 2310.02575).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fusion_bench.api import inputs_of
from fusion_bench.build import hyper
from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.family import family_of
from fusion_bench.method.base import Inputs, Slot, TensorMethod
from fusion_bench.method.engine import MergedCheckpoint
from fusion_bench.modelpool import open_modelpool
from fusion_bench.modelpool.base import ModelPool

TASKS = ("cola", "rte", "sst2")
LENGTH = 24


@dataclass(frozen=True)
class FisherWeighted(TensorMethod):
    """Statistics are checkpoints under the models' names; a slot tells which entries of them it needs."""

    statistics: Mapping[str, Any] = hyper({}, "the diagonal Fisher of each model")

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        total, weight = torch.zeros(()), torch.zeros(())
        for name, model in zip(slot.model_names, slot.models, strict=True):
            fisher = self.statistics[name].read(slot.name, slot.start, slot.stop) + 1e-6
            total, weight = total + fisher * model, weight + fisher
        return total / weight


@dataclass(frozen=True)
class LayerWise(TensorMethod):
    """What AdaMerging returns once it has learnt: an ordinary method with plain numbers inside."""

    needs_base = True
    coefficients: Mapping[str, Any] = hyper({}, "tensor -> one coefficient a model")

    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        merged = slot.base.clone()
        for factor, delta in zip(self.coefficients[slot.name], slot.deltas, strict=True):
            merged += factor * delta
        return merged


@pytest.fixture(scope="module")
def pool() -> ModelPool:
    return open_modelpool({"type": "embedded", "name": "mini_t5_glue_lora16", "select": list(TASKS)})


def inputs(pool: ModelPool, method: TensorMethod) -> Inputs:
    return inputs_of(method, pool, threads=2, dtype="F32")


def full(pool: ModelPool, model: Checkpoint, name: str) -> torch.Tensor:
    """A tensor of an adapted model before it is rounded to the base's half precision."""
    assert pool.base is not None
    start = pool.base.read(name).float()
    return model.apply_delta(name, 0, start).reshape(model.info(name).shape)


def batch(seed: int, rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 200, (rows, LENGTH), generator=generator)
    return {"input_ids": tokens, "decoder_input_ids": torch.zeros(rows, 1, dtype=torch.long)}


def entropy(logits: torch.Tensor) -> torch.Tensor:
    logs = logits[:, 0].log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


def fisher(checkpoint: Checkpoint, seed: int) -> MemoryCheckpoint:
    module: Any = family_of(checkpoint.config).load(checkpoint, torch.float32, torch.device("cpu"))
    module.requires_grad_(True)
    squares = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for number in range(4):
        module.zero_grad()
        logits = module(**batch(seed + number, 1)).logits[0, 0]
        logits.log_softmax(-1)[int(logits.argmax())].backward()
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                squares[name] += parameter.grad**2 / 4
    # Parameters go by the names that the checkpoint stores them under.
    return MemoryCheckpoint({checkpoint.stored(name): value for name, value in squares.items()})


def test_fisher(pool: ModelPool) -> None:
    statistics = {name: fisher(model, number) for number, (name, model) in enumerate(pool.models.items())}
    method = FisherWeighted(statistics=statistics)
    merged = MergedCheckpoint(method, inputs(pool, method))
    for name in merged:
        if not merged.infos[name].floating:
            continue
        models = torch.stack([full(pool, model, name) for model in pool.models.values()])
        weights = torch.stack([statistics[task][name] for task in pool.models]) + 1e-6
        torch.testing.assert_close(merged[name], (weights * models).sum(0) / weights.sum(0), rtol=1e-5, atol=1e-6)


def test_gradients_of_layer_wise_coefficients(pool: ModelPool) -> None:
    """The gradient of a coefficient is the inner product of the merged model's gradient with the streamed delta."""
    assert pool.base is not None
    names = [name for name in pool.base if pool.base.infos[name].floating]
    start = {name: [0.3, 0.2, 0.1] for name in names}
    method = LayerWise(coefficients=start)
    merged = MergedCheckpoint(method, inputs(pool, method))
    module: Any = family_of(pool.base.config).load(merged, torch.float32, torch.device("cpu"))
    module.requires_grad_(True)
    data = batch(7, 4)
    entropy(module(**data).logits).backward()
    gradients = {merged.stored(name): p.grad for name, p in module.named_parameters() if p.grad is not None}

    def products(slot: Slot) -> tuple[str, list[float]]:
        part = gradients[slot.name].reshape(-1)[slot.start : slot.stop].double()
        return slot.name, [float(part @ delta.double()) for delta in slot.deltas]

    found: dict[str, list[float]] = {}
    for name, values in merged.scan(products, "gradients", names=gradients):
        found[name] = [a + b for a, b in zip(found.get(name, [0.0] * 3), values, strict=True)]

    rows = {name: torch.tensor(start[name], requires_grad=True) for name in names}
    whole = {
        name: pool.base[name].float()
        + sum(
            row * (full(pool, model, name) - pool.base[name].float())
            for row, model in zip(rows[name], pool.models.values(), strict=True)
        )
        for name in names
    }
    parameters = {name: whole[merged.stored(name)] for name, _ in module.named_parameters()}
    entropy(torch.func.functional_call(module, parameters, kwargs=data).logits).backward()
    for name, values in found.items():
        expected = rows[name].grad
        assert expected is not None
        torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-4, atol=1e-5)
    assert max(abs(value) for values in found.values() for value in values) > 1e-4
