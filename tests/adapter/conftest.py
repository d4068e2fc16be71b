"""Adapters made by hand over small bases, and live models adapted by PEFT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_bench.checkpoint.adapter import AdapterCheckpoint
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.modelpool.base import ModelPool

ORACLES = str(Path(__file__).resolve().parent.parent / "oracles")
if ORACLES not in sys.path:
    sys.path.insert(0, ORACLES)

Pairs = Mapping[str, tuple[Any, Any]]


class Workshop:
    """Writes adapters into numbered folders below `root` and makes pools of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0

    def lora(self, base: Any, pairs: Pairs, **config: Any) -> AdapterCheckpoint:
        """An adapter out of module -> (B, A)."""
        tensors = {}
        for module, (up, down) in pairs.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.as_tensor(down, dtype=torch.float64)
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.as_tensor(up, dtype=torch.float64)
        rank = tensors[next(iter(tensors))].shape[0]
        return self.write(base, tensors, {"peft_type": "LORA", "r": rank, "lora_alpha": rank, **config})

    def ia3(self, base: Any, vectors: Mapping[str, Any], forward: tuple[str, ...] = ()) -> AdapterCheckpoint:
        """An adapter out of module -> vector; those in `forward` scale inputs."""
        tensors = {}
        for module, vector in vectors.items():
            flat = torch.as_tensor(vector, dtype=torch.float64)
            tensors[f"base_model.model.{module}.ia3_l"] = flat.reshape((1, -1) if module in forward else (-1, 1))
        return self.write(base, tensors, {"peft_type": "IA3", "feedforward_modules": list(forward)})

    def write(self, base: Any, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> AdapterCheckpoint:
        folder = self.root / f"adapter_{self.count}"
        self.count += 1
        folder.mkdir()
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
            folder / "adapter_model.safetensors",
        )
        (folder / "adapter_config.json").write_text(json.dumps({"target_modules": [], **config}))
        return AdapterCheckpoint(base, folder)

    def base(self, dtype: Any = torch.float64, **shapes: tuple[int, ...]) -> MemoryCheckpoint:
        """A base with a random weight for each module."""
        generator = torch.Generator().manual_seed(7)
        return MemoryCheckpoint(
            {
                f"{name}.weight": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
                for name, shape in shapes.items()
            }
        )

    def pool(self, base: Any, *members: Any) -> ModelPool:
        return ModelPool(models={f"m{i}": member for i, member in enumerate(members)}, base=base)

    def drawn(self, base: Any, ranks: list[int], modules: list[str], scales: list[float] | None = None) -> ModelPool:
        """Random adapters of these ranks over all `modules`; `scales`: their alpha / r."""
        generator = torch.Generator().manual_seed(len(ranks))
        members = []
        for number, rank in enumerate(ranks):
            pairs = {}
            for module in modules:
                out, width = base.info(f"{module}.weight").shape
                pairs[module] = (
                    torch.randn(out, rank, generator=generator, dtype=torch.float64),
                    torch.randn(rank, width, generator=generator, dtype=torch.float64),
                )
            scale = scales[number] if scales else 1.0
            members.append(self.lora(base, pairs, r=rank, lora_alpha=scale * rank))
        return self.pool(base, *members)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def change(adapter: Any, name: str) -> torch.Tensor:
    """The change of one tensor, as the base stores it, in float64."""
    factors = adapter.factors[name]
    whole = factors.scale * factors.B.double() @ factors.A.double()
    return (whole.t() if factors.transposed else whole).reshape(adapter.base.info(name).shape)


def dense(pool: ModelPool, method: Any, name: str, **how: Any) -> torch.Tensor:
    """What the method changes of one tensor when full tensors are merged."""
    from fusion_bench.api import fuse_pool

    return fuse_pool(method, pool, **how).checkpoint[name].double() - pool.base[name].double()


@pytest.fixture
def tools() -> SimpleNamespace:
    return SimpleNamespace(change=change, dense=dense)


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )  # fmt: skip
    return _seeded(T5ForConditionalGeneration, config)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=1)
    return _seeded(GPT2LMHeadModel, config)


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    return _seeded(LlamaForCausalLM, config)


def _seeded(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


LIVE: dict[str, Callable[[], Any]] = {"t5": t5, "gpt2": gpt2, "llama": llama}


@pytest.fixture(scope="session")
def live() -> dict[str, Callable[[], Any]]:
    """Makers of tiny models, each time with the same random weights."""
    return LIVE
