"""Task vectors of adapters are the products of their factors, not a difference of large numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fusion_bench.api import inputs_of
from fusion_bench.method import method_class
from fusion_bench.method.engine import MergedCheckpoint
from fusion_bench.modelpool.base import ModelPool
from fusion_bench.modelpool.members import open_member


def test_delta_is_free_of_the_bases_rounding(tmp_path: Path, tiny: Any) -> None:
    base = tiny.t5()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(1000)
    base.save_pretrained(tmp_path / "base")
    tiny.lora(base, tmp_path / "lora", 0, str(tmp_path / "base"))
    under = open_member(str(tmp_path / "base"))
    pool = ModelPool({"lora": open_member(str(tmp_path / "lora"), base=lambda: under)}, under)
    method: Any = method_class("dare")(drop_rate=0.0)
    merged = MergedCheckpoint(method, inputs_of(method, pool))
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"

    def visit(slot: Any) -> torch.Tensor:
        return next(slot.deltas).clone().reshape(-1)

    (found,) = merged.scan(visit, "reading", names=[name])
    factors: Any = pool.models["lora"].delta(name)
    exact = factors.scale * factors.B.double() @ factors.A.double()
    torch.testing.assert_close(found.double(), exact.reshape(-1), rtol=1e-5, atol=1e-9)
    difference = pool.models["lora"][name].double() - under[name].double()
    assert (difference - exact).abs().max() > 1e-6  # the sum itself rounds coarsely
