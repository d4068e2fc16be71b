"""Saved adapters loaded by PEFT itself: the live model predicts what the dense merge predicts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

from fusion_bench import SimpleAverage, TaskArithmetic, TiesMerging, fuse
from fusion_bench.adapter import extract_adapter, fuse_adapters, save_adapter
from fusion_bench.api import fuse_pool
from fusion_bench.checkpoint.adapter import AdapterCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.verify import verify
from fusion_bench.errors import ConfigError, OutputError
from fusion_bench.modelpool.base import ModelPool
from fusion_bench.modelpool.members import with_ties

LORA: dict[str, tuple[str, list[Callable[[], Any]]]] = {
    "t5": ("t5", [lambda: LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")] * 3),
    "t5_mixed": (
        "t5",
        [
            lambda: LoraConfig(r=4, lora_alpha=8, target_modules=["q", "v"], rank_pattern={"encoder.*.q": 2}),
            lambda: LoraConfig(r=3, use_rslora=True, target_modules=["q", "wo"], alpha_pattern={"wo": 5}),
            lambda: LoraConfig(r=2, target_modules=["k"], layers_to_transform=[1], layers_pattern="block"),
        ],
    ),
    "gpt2": ("gpt2", [lambda: LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)] * 2),
    "gpt2_square": ("gpt2", [lambda: LoraConfig(r=2, target_modules=["attn.c_proj"], fan_in_fan_out=True)] * 2),
    "gpt2_embedding": ("gpt2", [lambda: LoraConfig(r=3, target_modules=["wpe", "c_fc"], fan_in_fan_out=True)] * 2),
    "llama": ("llama", [lambda: LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")] * 2),
}
GATES: dict[str, tuple[str, Callable[[], Any]]] = {
    "t5": ("t5", lambda: IA3Config(target_modules=["k", "v", "wi_1", "wo"], feedforward_modules=["wo"])),
    "gpt2": (
        "gpt2",
        lambda: IA3Config(
            target_modules=["c_attn", "attn.c_proj", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
            fan_in_fan_out=True,
        ),
    ),
    "gpt2_bias": ("gpt2", lambda: IA3Config(target_modules=["c_fc"], feedforward_modules=[], fan_in_fan_out=True)),
    "llama": (
        "llama",
        lambda: IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
}


def moved(model: Any, seed: int, size: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def pool_of(folder: Path, build: Callable[[], Any], configs: list[Callable[[], Any]]) -> ModelPool:
    """A saved base and adapters that PEFT made, moved and saved."""
    build().save_pretrained(folder / "base")
    base = with_ties(open_checkpoint(folder / "base"))
    members: dict[str, Any] = {}
    for number, config in enumerate(configs):
        moved(get_peft_model(build(), config()), number).save_pretrained(folder / f"a{number}")
        members[f"a{number}"] = AdapterCheckpoint(base, folder / f"a{number}")
    return ModelPool(models=members, base=base)


def logits(model: Any) -> torch.Tensor:
    words = torch.tensor([[3, 7, 1, 22, 39], [5, 5, 2, 9, 1]])
    extra = {"decoder_input_ids": words[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = model.eval()(input_ids=words, **extra).logits
    assert isinstance(found, torch.Tensor)
    return found


def with_values(build: Callable[[], Any], checkpoint: Any) -> Any:
    """A live model with the values of a checkpoint."""
    model = build()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(checkpoint[name])
    return model


def reloaded(folder: Path, out: Path) -> Any:
    kind = {"t5": "AutoModelForSeq2SeqLM"}.get(json.loads((folder / "base" / "config.json").read_text())["model_type"])
    import transformers

    loader = getattr(transformers, kind or "AutoModelForCausalLM")
    return PeftModel.from_pretrained(loader.from_pretrained(folder / "base"), out)


@pytest.mark.parametrize("case", LORA)
@pytest.mark.parametrize("space", ["auto", "core", "knots"])
def test_lora(case: str, space: Any, tmp_path: Path, live: Any) -> None:
    """Merge-then-fold = fold-then-merge, and the unfolded model in PEFT says the same."""
    architecture, configs = LORA[case]
    pool = pool_of(tmp_path, live[architecture], configs)
    method = TaskArithmetic(scaling_factor=0.6)
    save_adapter(fuse_adapters(method, pool, space=space), tmp_path / "out")
    merged = fuse_pool(method, pool).checkpoint
    expected = logits(with_values(live[architecture], merged))
    assert (logits(live[architecture]()) - expected).abs().max() > 1e-3
    torch.testing.assert_close(logits(reloaded(tmp_path, tmp_path / "out")), expected, rtol=1e-5, atol=1e-5)
    again = AdapterCheckpoint(pool.base, tmp_path / "out")
    for name in merged:
        torch.testing.assert_close(again[name], merged[name], rtol=1e-5, atol=1e-5)
    # The saved adapter is a member of a pool like any other, and alone it is itself.
    same = fuse_adapters(SimpleAverage(), ModelPool(models={"one": again}, base=pool.base))
    save_adapter(same, tmp_path / "same")
    for name in merged:
        close = AdapterCheckpoint(pool.base, tmp_path / "same")[name]
        torch.testing.assert_close(close, again[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
def test_other_methods_and_ranks(rank: int | None, tmp_path: Path, live: Any) -> None:
    """What PEFT computes is what our reader folds, also for a rank that loses something."""
    architecture, configs = LORA["t5_mixed"]
    pool = pool_of(tmp_path, live[architecture], configs)
    save_adapter(fuse_adapters(TiesMerging(), pool, rank=rank), tmp_path / "out")
    folded = with_values(live[architecture], AdapterCheckpoint(pool.base, tmp_path / "out"))
    torch.testing.assert_close(logits(reloaded(tmp_path, tmp_path / "out")), logits(folded), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", GATES)
def test_ia3(case: str, tmp_path: Path, live: Any) -> None:
    """The average of vectors is the average of folded weights (biases included), live in PEFT."""
    architecture, config = GATES[case]
    pool = pool_of(tmp_path, live[architecture], [config] * 3)
    save_adapter(fuse_adapters(SimpleAverage(), pool), tmp_path / "out")
    merged = fuse_pool(SimpleAverage(), pool).checkpoint
    expected = logits(with_values(live[architecture], merged))
    torch.testing.assert_close(logits(reloaded(tmp_path, tmp_path / "out")), expected, rtol=1e-5, atol=1e-5)
    again = AdapterCheckpoint(pool.base, tmp_path / "out")
    for name in merged:
        torch.testing.assert_close(again[name], merged[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["t5", "gpt2"])
def test_dora_at_full_rank(architecture: str, tmp_path: Path, live: Any) -> None:
    """L63: a single DoRA adapter is itself as a LoRA of full rank; below that the kept share is told."""
    targets = {"t5": ["q", "wo"], "gpt2": ["c_attn", "c_proj"]}[architecture]
    config = LoraConfig(r=3, use_dora=True, target_modules=targets, fan_in_fan_out=architecture == "gpt2")
    pool = pool_of(tmp_path, live[architecture], [lambda: config])
    with pytest.raises(ConfigError, match="DoRA"):
        fuse_adapters(SimpleAverage(), pool)
    save_adapter(fuse_adapters(SimpleAverage(), pool, rank=1.0), tmp_path / "out")
    expected = logits(with_values(live[architecture], pool.models["a0"]))
    torch.testing.assert_close(logits(reloaded(tmp_path, tmp_path / "out")), expected, rtol=1e-5, atol=1e-5)
    low = fuse_adapters(SimpleAverage(), pool, rank=2)
    assert 0 < low.share < 1
    assert "rank=2: the adapter keeps" in low.remarks[-1]


@pytest.mark.parametrize("architecture", ["t5", "gpt2", "llama"])
def test_full_fine_tune(architecture: str, tmp_path: Path, live: Any) -> None:
    """Linear layers as factors of full rank, the rest whole, tied embeddings included: the model is there again."""
    build = live[architecture]
    build().save_pretrained(tmp_path / "base")
    moved(build(), 3, 0.1).save_pretrained(tmp_path / "expert")
    base, expert = (with_ties(open_checkpoint(tmp_path / name)) for name in ("base", "expert"))
    with pytest.raises(ConfigError, match="no weights of linear layers"):
        extract_adapter(expert, base, rank=2)
    adapter = extract_adapter(expert, base, rank=1.0, others="save")
    save_adapter(adapter, tmp_path / "out")
    expected = logits(moved(build(), 3, 0.1))
    torch.testing.assert_close(logits(reloaded(tmp_path, tmp_path / "out")), expected, rtol=1e-5, atol=1e-5)
    again = AdapterCheckpoint(base, tmp_path / "out")
    for name in expert:
        torch.testing.assert_close(again[name], expert[name], rtol=1e-5, atol=1e-5)
    dropped = extract_adapter(expert, base, rank=3, others="drop")
    assert not dropped.saved
    assert "leaves out" in dropped.remarks[0]
    assert set(dropped.ranks.values()) == {3}
    assert 0 < dropped.share < 1


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_and_saved_heads(bias: Any, tmp_path: Path, live: Any) -> None:
    """Changes beside the factors are refused by name, or merged and saved whole."""
    config = LoraConfig(
        r=3, bias=bias, target_modules=["c_attn", "c_fc"], modules_to_save=["ln_f"], fan_in_fan_out=True
    )
    pool = pool_of(tmp_path, live["gpt2"], [lambda: copy.deepcopy(config)] * 2)
    with pytest.raises(ConfigError, match=r"c_attn\.bias"):
        fuse_adapters(SimpleAverage(), pool)
    adapter = fuse_adapters(SimpleAverage(), pool, others="save")
    save_adapter(adapter, tmp_path / "out")
    merged = fuse_pool(SimpleAverage(), pool).checkpoint
    expected = logits(with_values(live["gpt2"], merged))
    torch.testing.assert_close(logits(reloaded(tmp_path, tmp_path / "out")), expected, rtol=1e-5, atol=1e-5)
    dropped = fuse_adapters(SimpleAverage(), pool, others="drop")
    assert "leaves out" in dropped.remarks[0]


def test_settings(tmp_path: Path, live: Any) -> None:
    """Short names where they say enough, full ones elsewhere; the task; ranks that differ; the base's place."""
    architecture, configs = LORA["t5_mixed"]
    pool = pool_of(tmp_path, live[architecture], configs)
    save_adapter(fuse_adapters(SimpleAverage(), pool), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "encoder.block.1.layer.0.SelfAttention.k" in written["target_modules"]
    assert "q" not in written["target_modules"]
    assert written["task_type"] == "SEQ_2_SEQ_LM"
    assert written["base_model_name_or_path"] == "../base"
    assert written["alpha_pattern"] == written["rank_pattern"] != {}
    assert written["lora_alpha"] == written["r"]
    alike = pool_of(tmp_path / "alike", live["llama"], LORA["llama"][1])
    save_adapter(fuse_adapters(SimpleAverage(), alike), tmp_path / "alike" / "out")
    written = json.loads((tmp_path / "alike" / "out" / "adapter_config.json").read_text())
    assert written["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert written["rank_pattern"] == {}
    assert written["task_type"] == "CAUSAL_LM"


def test_outputs_are_whole_and_kept(tmp_path: Path, live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(tmp_path, live["llama"], LORA["llama"][1])
    adapter = fuse_adapters(SimpleAverage(), pool)
    out, origin = tmp_path / "out", {"method": "simple_average"}
    assert save_adapter(adapter, out, origin=origin).how == "written"
    assert {path.name for path in out.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "fusion_bench.json",
    }  # fmt: skip
    assert verify(out).whole
    assert save_adapter(adapter, out, origin=origin).how == "complete"
    with pytest.raises(OutputError, match="another command"):
        save_adapter(adapter, out, origin={"method": "ties_merging"})
    before = (out / "adapter_model.safetensors").read_bytes()
    save_adapter(adapter, out, origin={"method": "ties_merging"}, overwrite=True, dtype="bfloat16")
    assert (out / "adapter_model.safetensors").stat().st_size < 0.6 * len(before)
    monkeypatch.setattr(
        "fusion_bench.adapter.write.write_tensors", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OutputError, match="full"):
        save_adapter(adapter, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_inputs_are_fused_as_they_are(tmp_path: Path, live: Any) -> None:
    """The dense merge of `fuse` and the adapter's fold agree for a linear method to float32."""
    pool = pool_of(tmp_path, live["t5"], LORA["t5"][1])
    adapter = fuse_adapters(SimpleAverage(), pool)
    merged = fuse(SimpleAverage(), pool)
    for name, factors in adapter.factors.items():
        torch.testing.assert_close(pool.base[name] + factors.B @ factors.A, merged[name], rtol=1e-5, atol=1e-6)
