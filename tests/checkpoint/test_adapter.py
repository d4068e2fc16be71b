"""Adapters folded tensor by tensor against PEFT's own merge_and_unload."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn

from fusion_bench.checkpoint.adapter import AdapterCheckpoint
from fusion_bench.checkpoint.adapter_edits import Grid
from fusion_bench.checkpoint.base import Dense, LowRank, Scale
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.views import WithAliases

T5_FF = ["wi_1", "wo"]
CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "plain": ("t5", lambda: LoraConfig(r=4, lora_alpha=6, target_modules=["q", "v"])),
    "rslora": ("t5", lambda: LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["q", "wo"])),
    "patterns": (
        "t5",
        lambda: LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["q", "v", "wo"],
            rank_pattern={"encoder.block.0.layer.0.SelfAttention.q": 2, "decoder.*.v": 3},
            alpha_pattern={"block.1.layer.0.SelfAttention.q": 9, "^decoder.*.wo": 1},
        ),
    ),
    "rslora_patterns": (
        "t5",
        lambda: LoraConfig(
            r=4,
            lora_alpha=6,
            use_rslora=True,
            target_modules=["q"],
            rank_pattern={"block.1.layer.0.SelfAttention.q": 2},
            alpha_pattern={"decoder.block.0.*q": 9},
        ),
    ),
    "layers": (
        "t5",
        lambda: LoraConfig(r=4, target_modules=["q"], layers_to_transform=[1], layers_pattern="block"),
    ),
    "head": ("t5", lambda: LoraConfig(r=4, target_modules=["q"], modules_to_save=["lm_head"])),
    "saved_embedding": ("t5", lambda: LoraConfig(r=4, target_modules=["q"], modules_to_save=["shared"])),
    "saved_part": ("t5", lambda: LoraConfig(r=4, target_modules=["q"], modules_to_save=["final_layer_norm"])),
    "embedding": ("t5", lambda: LoraConfig(r=4, target_modules=["shared", "q"])),
    "dora": ("t5", lambda: LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["q", "wo"])),
    "dora_rslora": ("t5", lambda: LoraConfig(r=4, use_dora=True, use_rslora=True, target_modules=["v"])),
    "dora_embedding": ("gpt2", lambda: LoraConfig(r=4, use_dora=True, target_modules=["wpe"])),
    "ia3": ("t5", lambda: IA3Config(target_modules=["k", "v", "wi_1", "wo"], feedforward_modules=T5_FF)),
    "conv1d": ("gpt2", lambda: LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "conv1d_square": ("gpt2", lambda: LoraConfig(r=4, target_modules=["attn.c_proj"], fan_in_fan_out=True)),
    "conv1d_dora": (
        "gpt2",
        lambda: LoraConfig(r=4, use_dora=True, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    ),
    "conv1d_ia3": (
        "gpt2",
        lambda: IA3Config(
            target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True
        ),
    ),
    "conv1d_ia3_square": (
        "gpt2",
        lambda: IA3Config(target_modules=["attn.c_proj"], feedforward_modules=[], fan_in_fan_out=True),
    ),
    "tied_embedding": ("gpt2", lambda: LoraConfig(r=4, target_modules=["wte", "c_attn"], fan_in_fan_out=True)),
    "tied_head": ("gpt2", lambda: LoraConfig(r=4, target_modules=["lm_head"])),
    "saved_tied_head": ("gpt2", lambda: LoraConfig(r=4, target_modules=["c_fc"], modules_to_save=["lm_head"])),
    "saved_tied_embedding": ("gpt2", lambda: LoraConfig(r=4, target_modules=["c_fc"], modules_to_save=["wte"])),
    "tied_embedding_dora": ("gpt2", lambda: LoraConfig(r=4, use_dora=True, target_modules=["wte"])),
    "ties_kept_in_name": (
        "gpt2",
        lambda: LoraConfig(r=4, target_modules=["c_fc"], modules_to_save=["wte"], ensure_weight_tying=True),
    ),
    "ties_kept": (
        "gpt2",
        lambda: LoraConfig(r=4, target_modules=["c_fc"], modules_to_save=["lm_head"], ensure_weight_tying=True),
    ),
    "ties_kept_t5": (
        "t5",
        lambda: LoraConfig(r=4, target_modules=["q"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    "conv1d_bias": ("gpt2", lambda: LoraConfig(r=4, bias="all", target_modules=["c_attn"], fan_in_fan_out=True)),
    "bias_all": ("bert", lambda: LoraConfig(r=4, bias="all", task_type="SEQ_CLS", target_modules=["query", "value"])),
    "bias_lora_only": ("bert", lambda: LoraConfig(r=4, bias="lora_only", target_modules=["query", "dense"])),
    "lora_bias": ("bert", lambda: LoraConfig(r=4, lora_alpha=12, lora_bias=True, target_modules=["query", "dense"])),
    "classifier": ("bert", lambda: LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["query"])),
    "bert_ia3": (
        "bert",
        lambda: IA3Config(
            task_type="SEQ_CLS", target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]
        ),
    ),
    "bert_dora": ("bert", lambda: LoraConfig(r=4, use_dora=True, target_modules="all-linear")),
}


def randomised(model: nn.Module) -> None:
    """Every trainable parameter moves, zero-initialised factors included; magnitudes and scales stay near theirs."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def saved(folder: Path, build: Callable[[], Any], config: Any) -> tuple[AdapterCheckpoint, dict[str, torch.Tensor]]:
    """An adapter made, changed and saved by PEFT: ours over its base, and the state dict PEFT folds it to."""
    base = build()
    base.save_pretrained(folder / "base")
    checkpoint = WithAliases(open_checkpoint(folder / "base"), MemoryCheckpoint.of_module(base).aliases)
    model = get_peft_model(base, config)
    randomised(model)
    model.save_pretrained(folder / "adapter")
    fresh = type(build()).from_pretrained(folder / "base")
    folded = PeftModel.from_pretrained(fresh, folder / "adapter").merge_and_unload()
    adapter = open_checkpoint(folder / "adapter", base=checkpoint)
    assert isinstance(adapter, AdapterCheckpoint)
    return adapter, {name: tensor.detach().clone() for name, tensor in folded.state_dict().items()}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, architectures: Any) -> Any:
    architecture, config = CASES[request.param]
    return saved(tmp_path_factory.mktemp("adapter"), architectures[architecture], config())


def test_equals_merge_and_unload(case: Any) -> None:
    adapter, expected = case
    assert set(adapter) | set(adapter.aliases) == set(expected)
    for name, tensor in expected.items():
        assert adapter.info(name).shape == tuple(tensor.shape)
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_it_changes_something(case: Any) -> None:
    """An adapter that were ignored would pass the comparison of unchanged tensors."""
    adapter, expected = case
    changed = [n for n in expected if n not in adapter.base or not torch.equal(adapter[n], adapter.base[n])]
    assert changed
    assert {n for n in adapter if adapter.delta(n) is not None} <= set(changed)


def test_slices_are_parts_of_the_whole(case: Any) -> None:
    adapter, _ = case
    for name in adapter:
        if adapter.delta(name) is None:
            continue
        whole, numel = adapter.read(name), adapter.info(name).numel
        for start, stop in ((0, numel), (1, numel), (numel // 3, numel // 2 + 1), (numel - 1, numel), (2, 2)):
            assert torch.equal(adapter.read(name, start, stop), whole[start:stop]), (name, start, stop)
            if name in adapter.base and adapter.base.info(name).shape == adapter.info(name).shape:
                part = adapter.base.read(name, start, stop)
                kept = part.clone()
                assert torch.equal(adapter.apply_delta(name, start, part), whole[start:stop])
                assert torch.equal(part, kept)


def test_deltas_reproduce_the_tensor(case: Any) -> None:
    adapter, _ = case
    for name in adapter:
        delta = adapter.delta(name)
        if isinstance(delta, LowRank):
            product = delta.scale * (delta.B @ delta.A)
            change = (product.t() if delta.transposed else product).reshape(adapter.info(name).shape)
            torch.testing.assert_close(adapter.base[name] + change, adapter[name], rtol=1e-6, atol=1e-6)
        elif isinstance(delta, Scale):
            torch.testing.assert_close(adapter.base[name] * delta.factor, adapter[name], rtol=0, atol=0)
        elif delta is None:
            assert torch.equal(adapter.base[name], adapter[name])
        else:
            assert isinstance(delta, Dense)


def test_long_tensors_do_not_depend_on_slices_or_threads(tmp_path: Path) -> None:
    """Several row blocks, the last one short; slices begin and end inside blocks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 1000), nn.ReLU(), nn.Linear(1000, 700), nn.Embedding(900, 40))
    base = MemoryCheckpoint({name: tensor.clone() for name, tensor in model.state_dict().items()})
    peft = get_peft_model(model, LoraConfig(r=8, target_modules=["0", "3"]))
    peft.add_adapter("dora", LoraConfig(r=8, use_dora=True, target_modules=["0", "2", "3"]))
    for parameter in peft.parameters():
        parameter.requires_grad_(True)
    randomised(peft)
    peft.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "dora"):
        for name in ("0.weight", "3.weight"):
            adapter = AdapterCheckpoint(base, folder)
            whole, numel = adapter.read(name), adapter.info(name).numel
            edges = sorted({0, 1, 257, numel // 7, numel // 3 + 5, numel - 4097, numel})
            fresh = AdapterCheckpoint(base, folder)
            threads = torch.get_num_threads()
            torch.set_num_threads(2 if threads == 1 else 1)
            parts = [fresh.read(name, start, stop) for start, stop in pairwise(edges)]
            torch.set_num_threads(threads)
            assert torch.equal(torch.cat(parts), whole)


@given(rows=st.integers(1, 900), columns=st.integers(1, 70_000), ends=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_blocks_are_fixed_and_cover_the_slice(rows: int, columns: int, ends: tuple[float, float]) -> None:
    grid = Grid(rows, columns)
    start, stop = sorted(int(end * rows * columns) for end in ends)
    position = start
    for block, inside, part in grid.blocks(start, stop):
        assert block.start % grid.step == 0
        assert block.stop == min(block.start + grid.step, rows)
        assert block.start * columns + inside.start == position == start + part.start
        assert inside.stop - inside.start == part.stop - part.start > 0
        assert inside.stop <= (block.stop - block.start) * columns
        position += part.stop - part.start
    assert position == stop


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.point = nn.Conv2d(6, 6, 1)
        self.line = nn.Conv1d(6, 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(self.point(self.first(x)).flatten(2))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["first", "point", "line"]),
        LoraConfig(r=2, use_dora=True, target_modules=["first", "point", "line"]),
        LoraConfig(r=2, lora_bias=True, target_modules=["first"]),
        IA3Config(target_modules=["first", "point"], feedforward_modules=["point"]),
    ],
    ids=["lora", "dora", "lora_bias", "ia3"],
)
def test_convolutions(tmp_path: Path, config: Any) -> None:
    torch.manual_seed(0)
    model = Convolutions()
    base = MemoryCheckpoint({name: tensor.clone() for name, tensor in model.state_dict().items()})
    peft = get_peft_model(model, config)
    randomised(peft)
    peft.save_pretrained(tmp_path)
    adapter = AdapterCheckpoint(base, tmp_path)
    for name, tensor in peft.merge_and_unload().state_dict().items():
        torch.testing.assert_close(adapter[name], tensor, rtol=1e-6, atol=1e-6)
        assert torch.equal(adapter.read(name, 2, 4), adapter.read(name)[2:4])


def test_half_precision_base_is_rounded_once(tmp_path: Path, architectures: Any) -> None:
    config = LoraConfig(r=4, target_modules=["q"])
    adapter, expected = saved(tmp_path, lambda: architectures["t5"]().to(torch.bfloat16), config)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert adapter.info(name).dtype == "BF16"
    assert expected[name].dtype == torch.bfloat16
    assert torch.equal(adapter[name], expected[name])
    unrounded = adapter.apply_delta(name, 0, adapter.base.read(name).float())
    assert not torch.equal(unrounded, unrounded.bfloat16().float())
    assert torch.equal(unrounded.bfloat16(), adapter.read(name))


def test_double_precision_base_is_summed_in_double_precision(tmp_path: Path, architectures: Any) -> None:
    adapter, expected = saved(tmp_path, lambda: architectures["t5"]().double(), LoraConfig(r=4, target_modules=["q"]))
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert adapter.info(name).dtype == "F64"
    torch.testing.assert_close(adapter[name], expected[name], rtol=0, atol=1e-7)


def test_saved_head_of_a_tied_model_is_stored_separately(tmp_path: Path, architectures: Any) -> None:
    adapter, _ = saved(tmp_path, architectures["gpt2"], CASES["saved_tied_head"][1]())
    assert {"lm_head.weight", "transformer.wte.weight"} <= set(adapter)
    assert adapter.base.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert adapter.aliases == {}


def test_modules_saved_as_one_stay_one_tensor(tmp_path: Path, architectures: Any) -> None:
    adapter, _ = saved(tmp_path, architectures["gpt2"], CASES["ties_kept"][1]())
    assert adapter.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert isinstance(adapter.delta("lm_head.weight"), Dense)
