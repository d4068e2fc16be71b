"""Golden vectors G20 and G21 of the specification through the library."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_bench import SimpleAverage, TaskArithmetic, WeightedAverage
from fusion_bench.adapter import fuse_adapters
from fusion_bench.checkpoint.peft_config import read_adapter_config

EXACT = torch.tensor([[1, 1, 3], [0, 0.5, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("space", ["auto", "core", "knots"])
def test_weighted_sum(workshop: Any, tools: Any, space: Any) -> None:
    """G20: no cross terms."""
    base = workshop.base(layer=(2, 3))
    first = workshop.lora(base, {"layer": ([[1.0], [0.0]], [[1.0, 0.0, 2.0]])}, lora_alpha=2)
    second = workshop.lora(base, {"layer": ([[2.0], [1.0]], [[0.0, 1.0, 1.0]])}, lora_alpha=0.5)
    method = WeightedAverage(weights=(0.5, 1.0), normalize=False)
    adapter = fuse_adapters(method, workshop.pool(base, first, second), space=space)
    torch.testing.assert_close(tools.change(adapter, "layer.weight"), EXACT, rtol=0, atol=1e-12)
    assert adapter.ranks == {"layer.weight": 2}
    assert "the base keeps weight 1" in adapter.remarks[0]


@pytest.mark.parametrize(("stabilised", "scale"), [(False, 2.0), (True, 8.0)])
def test_scaling(workshop: Any, stabilised: bool, scale: float) -> None:
    """G20: alpha 32 over rank 16, plain and stabilised, goes into B."""
    base = workshop.base(layer=(20, 20))
    member = workshop.lora(
        base, {"layer": (torch.ones(20, 16), torch.ones(16, 20))}, lora_alpha=32, use_rslora=stabilised
    )
    assert read_adapter_config(member.path).scaling_of("layer") == scale
    adapter = fuse_adapters(SimpleAverage(), workshop.pool(base, member))
    assert torch.equal(adapter.factors["layer.weight"].B, torch.full((20, 16), scale, dtype=torch.float64))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (SimpleAverage(), [1.05, 1.15]),
        (TaskArithmetic(scaling_factor=0.3), [1.03, 1.09]),
        (WeightedAverage(weights=(0.5, 0.3), normalize=False), [1.07, 1.05]),
    ],
)
def test_gates(workshop: Any, method: Any, expected: list[float]) -> None:
    """G21; weights that do not sum to 1 must not shrink to [.87, .85]."""
    base = workshop.base(k=(2, 3))
    members = [workshop.ia3(base, {"k": vector}) for vector in ([1.2, 0.8], [0.9, 1.5])]
    adapter = fuse_adapters(method, workshop.pool(base, *members))
    found = adapter.vectors["k.weight"].factor
    assert found.shape == (2, 1)
    torch.testing.assert_close(found.reshape(-1), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
