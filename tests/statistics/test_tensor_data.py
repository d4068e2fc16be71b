"""Tensors as the data of a task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusion_bench.errors import DataError
from fusion_bench.tensor_data import TensorData

INPUTS = torch.arange(24.0).reshape(8, 3)
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]


def test_every_example_once_in_a_shuffled_order() -> None:
    data = TensorData("t", INPUTS, LABELS)
    batch = data.collate(range(8))
    assert sorted(batch.ids) == list(range(8))
    assert batch.ids != tuple(range(8))
    assert torch.equal(batch.inputs["x"], INPUTS[list(batch.ids)])
    assert batch.labels is not None
    assert batch.labels.tolist() == [LABELS[at] for at in batch.ids]
    assert [b.ids for b in data.batches(3, 7)] == [batch.ids[:3], batch.ids[3:6], batch.ids[6:7]]
    assert TensorData("t", INPUTS, LABELS).collate(range(8)).ids == batch.ids
    assert TensorData("other", INPUTS, LABELS).collate(range(8)).ids != batch.ids


def test_logits_and_log_probabilities() -> None:
    module = torch.nn.Linear(3, 3)
    data = TensorData("t", INPUTS, LABELS)
    batch = data.collate([0, 1])
    logits = module(batch.inputs["x"])
    assert torch.equal(data.logits(module, batch), logits)
    torch.testing.assert_close(data.log_probs(module, batch).exp().sum(1), torch.ones(2))
    assert batch.labels is not None
    expected = logits.log_softmax(-1)[torch.arange(2), batch.labels]
    torch.testing.assert_close(data.gold_log_prob(module, batch), expected)
    assert data.gold_log_prob(module, batch).requires_grad


def test_named_inputs_outputs_with_logits_and_a_forward_of_ones_own() -> None:
    def module(a: torch.Tensor, b: torch.Tensor) -> Any:
        return SimpleNamespace(logits=a + b)

    data = TensorData("t", {"a": INPUTS, "b": INPUTS}, LABELS)
    batch = data.collate([4])
    assert torch.equal(data.logits(module, batch), 2 * batch.inputs["a"])
    own = TensorData("t", INPUTS, LABELS, lambda m, inputs: -m(inputs["x"]))
    torch.testing.assert_close(own.logits(torch.neg, own.collate([1])), own.collate([1]).inputs["x"])


def test_digests_tell_data_apart() -> None:
    def digest(inputs: torch.Tensor = INPUTS, labels: Any = tuple(LABELS), name: str = "t", **fields: Any) -> str:
        return TensorData(name, inputs, labels, **fields).digest

    assert digest() == digest()
    others = {
        digest(INPUTS + 1), digest(labels=[1] * 8), digest(name="u"), digest(INPUTS.double()),
        digest(INPUTS.reshape(8, 1, 3)), digest(masks={"m": INPUTS > 0}),
    }  # fmt: skip
    assert len(others) == 6
    assert digest() not in others
    assert digest(forward=lambda m, inputs: inputs["x"]) == ""


def test_faults() -> None:
    with pytest.raises(DataError, match="same number"):
        TensorData("t", INPUTS, [0, 1])
    with pytest.raises(DataError, match="same number"):
        TensorData("t", INPUTS[:0], [])
    for labels in ([0.5] * 8, [-1] * 8, torch.zeros(8, 1, dtype=torch.long)):
        with pytest.raises(DataError, match="class index"):
            TensorData("t", INPUTS, labels)  # type: ignore[arg-type]
