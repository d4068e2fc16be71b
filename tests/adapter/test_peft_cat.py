"""Weighted sums of plain LoRA adapters: PEFT's own `add_weighted_adapter` with `cat`, which is exact for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fusion_bench.adapter import fuse_adapters, save_adapter
from fusion_bench.build import build
from fusion_bench.checkpoint.adapter import AdapterCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.method import method_class
from fusion_bench.modelpool.base import ModelPool
from fusion_bench.modelpool.members import with_ties

METHODS: dict[str, tuple[str, dict[str, Any], list[float]]] = {
    "sum": ("task_arithmetic", {"scaling_factor": 1.0}, [1.0, 1.0, 1.0]),
    "scaled": ("task_arithmetic", {"scaling_factor": 0.3}, [0.3, 0.3, 0.3]),
    "signed": ("weighted_average", {"weights": [0.5, -0.25, 2.0], "normalize": False}, [0.5, -0.25, 2.0]),
    "mean": ("simple_average", {}, [1 / 3, 1 / 3, 1 / 3]),
}
# Ranks and scalings of the three adapters; PEFT puts weight and scaling into A.
RANKS = {"equal": [(4, 8)] * 3, "mixed ranks": [(4, 8), (2, 4), (3, 6)], "mixed scalings": [(4, 8), (4, 2), (4, 4)]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ranks", RANKS)
def test_cat(method: str, ranks: str, tmp_path: Path, live: Any) -> None:
    key, values, weights = METHODS[method]
    build_t5 = live["t5"]
    build_t5().save_pretrained(tmp_path / "base")
    base = with_ties(open_checkpoint(tmp_path / "base"))
    members: dict[str, Any] = {}
    for number, (rank, alpha) in enumerate(RANKS[ranks]):
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
        model = get_peft_model(build_t5(), config)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(tmp_path / f"a{number}")
        members[f"a{number}"] = AdapterCheckpoint(base, tmp_path / f"a{number}")
    pool = ModelPool(models=members, base=base)
    save_adapter(fuse_adapters(build(method_class(key), values, "method"), pool), tmp_path / "out")

    peers: Any = PeftModel.from_pretrained(build_t5(), tmp_path / "a0", adapter_name="a0")
    for name in list(members)[1:]:
        peers.load_adapter(tmp_path / name, adapter_name=name)
    peers.add_weighted_adapter(list(members), weights, "cat", combination_type="cat")
    ours = PeftModel.from_pretrained(build_t5(), tmp_path / "out", adapter_name="ours")
    compared = 0
    for name, module in peers.named_modules():
        if hasattr(module, "lora_A"):
            got, wanted = ours.get_submodule(name).get_delta_weight("ours"), module.get_delta_weight("cat")
            assert float(wanted.abs().max()) > 0.1
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
            assert ours.get_submodule(name).r["ours"] == module.r["cat"] == sum(rank for rank, _ in RANKS[ranks])
            compared += 1
    assert compared >= 8
