"""Parameters counted out of headers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2Model, T5Config, T5ForConditionalGeneration

from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.settings import Settings
from fusion_bench.taskpool import open_taskpool
from fusion_bench.taskpool.model_info import model_info

BASE = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
LARGE = {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16}
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


class Headers(Checkpoint):
    """A checkpoint that has nothing but headers."""

    def __init__(self, infos: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> None:
        self._infos, self._config = dict(sorted(infos.items())), config

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        raise AssertionError("no tensor may be read")


def headers(module: torch.nn.Module, config: Mapping[str, Any], without: tuple[str, ...] = ()) -> Headers:
    dtypes = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
    state = module.state_dict()
    return Headers(
        {n: TensorInfo(dtypes[t.dtype], tuple(t.shape)) for n, t in state.items() if n not in without}, config
    )


@pytest.mark.parametrize(
    ("shape", "untied", "tied"), [(BASE, 247_577_856, 222_903_552), (LARGE, 783_150_080, 750_251_008)]
)
def test_flan_t5(shape: dict[str, int], untied: int, tied: int) -> None:
    config = T5Config(vocab_size=32128, d_kv=64, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **shape)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    for written in ({"tie_word_embeddings": False}, config.to_dict()):
        plain = {"model_type": "t5", **written}
        expected = {"trainable_params": untied, "all_params": untied, "trainable_percentage": 1.0}
        assert model_info(headers(model, plain, COPIES)) == expected
        # A pickle with every name in it counts the shared embedding once.
        assert model_info(headers(model, plain)) == expected
        assert model_info(headers(model, plain, (*COPIES, "lm_head.weight")))["all_params"] == tied


def test_gpt2_backbone() -> None:
    with torch.device("meta"):
        model = GPT2Model(GPT2Config())
    found = headers(model, {"model_type": "gpt2"})
    assert len(found) == 148
    assert model_info(found)["all_params"] == 124_439_808
    masks = {f"h.{i}.attn.bias": TensorInfo("F32", (1, 1, 1024, 1024)) for i in range(12)}
    assert model_info(Headers({**found.infos, **masks}, {"model_type": "gpt2"}))["all_params"] == 124_439_808


def test_any_module_is_counted_as_parameters_counts() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    count = sum(p.numel() for p in model.parameters())
    assert model_info(MemoryCheckpoint.of_module(model))["all_params"] == count


def test_only_floating_tensors_are_parameters() -> None:
    infos = {
        "a": TensorInfo("BF16", (3, 2)),
        "b": TensorInfo("F8_E4M3", (5,)),
        "c": TensorInfo("I8", (7,)),
        "d": TensorInfo("F32", ()),
    }
    assert model_info(Headers(infos, {}))["all_params"] == 12
    empty = model_info(Headers({}, {}))
    assert empty == {"trainable_params": 0, "all_params": 0, "trainable_percentage": 0.0}


def test_dummy_pool(make_checkpoint: Callable[..., MemoryCheckpoint]) -> None:
    pool = open_taskpool({"type": "dummy"})
    pool.check()
    assert (pool.name, pool.tasks, dict(pool.metrics)) == ("dummy", (), {})
    checkpoint = make_checkpoint()
    assert pool.evaluate(checkpoint, settings=Settings()) == {"model_info": model_info(checkpoint)}
    assert pool.describe() == {"type": "dummy"}


def test_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from fusion_bench.taskpool import open_taskpool\n"
        "open_taskpool({'type': 'dummy'}).check()\n"
        "import fusion_bench.taskpool.model_info\n"
        "pool = open_taskpool({'type': 'glue_text_generation', 'data': 'mini_t5', 'limit': 5})\n"
        "try: pool.check([Path('/nowhere')])\n"
        "except Exception as fault: assert 'no such folder' in str(fault), fault\n"
        "found = [m for m in ('torch', 'transformers', 'datasets', 'peft') if m in sys.modules]\n"
        "assert not found, found"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
