"""Stacking layers of several models: the same functions as modules that are stacked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_bench import Passthrough, fuse
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.stacks import relayered, stacks_of
from fusion_bench.checkpoint.writer import save
from fusion_bench.errors import ConfigError, NonFiniteError

transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[5, 9, 3, 17, 30, 2]])
SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def llama(seed: int, layers: int = 4, **more: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**SMALL, num_hidden_layers=layers, num_key_value_heads=2, **more)
    return transformers.LlamaForCausalLM(config).eval()


def t5(seed: int, layers: int = 3, decoder: int = 2) -> Any:
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, num_heads=2, d_ff=24, num_layers=layers, num_decoder_layers=decoder,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


def stacked(method: Passthrough, models: dict[str, Any], base: Any = None, folder: Path | None = None) -> Any:
    """The result as a checkpoint; through files and back where a folder is given."""
    taken = {name: MemoryCheckpoint.of_module(model) for name, model in models.items()}
    out = fuse(method, taken, None if base is None else MemoryCheckpoint.of_module(base))
    if folder is None:
        return out
    save(out, folder, shard_bytes=9000)
    return open_checkpoint(folder)


def module(kind: Any, checkpoint: Any) -> Any:
    """The module that transformers builds out of the config, filled with exactly the checkpoint's tensors."""
    made = kind(kind.config_class.from_dict(dict(checkpoint.config))).eval()
    # Tied parameters are named once here.
    assert {name for name, _ in made.named_parameters()} <= {*checkpoint, *checkpoint.aliases}
    assert set(checkpoint) <= set(made.state_dict())
    made.load_state_dict({name: checkpoint[name] for name in (*checkpoint, *checkpoint.aliases)}, strict=False)
    return made


def logits(model: Any, cache: bool = False) -> torch.Tensor:
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(IDS, use_cache=cache, **more).logits


def test_two_models_as_one(tmp_path: Path) -> None:
    """Layers 0-2 of a, then 1-3 of b: equal to a module put together by hand, with and without a cache, saved."""
    a, b = llama(1), llama(2)
    method = Passthrough(slices=[{"model": "a", "layers": [0, 3]}, {"model": "b", "layers": [1, 4]}])
    out = stacked(method, {"a": a, "b": b}, folder=tmp_path / "out")
    assert out.config["num_hidden_layers"] == 6
    expected = llama(3, layers=6)
    parts = [*a.model.layers[:3], *b.model.layers[1:4]]
    for layer, part in zip(expected.model.layers, parts, strict=True):
        layer.load_state_dict(part.state_dict())
    for outer in ("embed_tokens", "norm"):
        getattr(expected.model, outer).load_state_dict(getattr(a.model, outer).state_dict())
    expected.lm_head.load_state_dict(a.lm_head.state_dict())
    made = module(transformers.LlamaForCausalLM, out)
    assert torch.equal(logits(made), logits(expected))
    torch.testing.assert_close(logits(made, cache=True), logits(made))
    generated = [made.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=c)[0].tolist() for c in (True, False)]
    assert generated[0] == generated[1]
    assert transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 6


def test_all_layers_are_the_model() -> None:
    """L60: `range(n)` has the same logits, and the view hands the same bytes on."""
    a = llama(1)
    for method in (
        Passthrough(),
        Passthrough(slices=[{"model": "a"}]),
        Passthrough(slices=[{"model": "a", "layers": [0, 4]}]),
    ):
        out = stacked(method, {"a": a, "b": llama(2)})
        assert dict(out.config) == a.config.to_dict() or out.config["num_hidden_layers"] == 4
        assert torch.equal(logits(module(transformers.LlamaForCausalLM, out)), logits(a))


def test_a_layer_twice_and_the_named_outside() -> None:
    a, b = llama(1), llama(2)
    out = stacked(
        Passthrough(slices=[{"model": "a", "layers": [2, 4]}, {"model": "a", "layers": [2, 3]}], outer="b"),
        {"a": a, "b": b},
    )
    assert out.config["num_hidden_layers"] == 3
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(out[name.format(0)], out[name.format(2)])
    assert torch.equal(out[name.format(0)], a.state_dict()[name.format(2)])
    assert not out.aliases, "copies are not tied"
    assert torch.equal(out["model.norm.weight"], b.state_dict()["model.norm.weight"])
    assert torch.equal(out["lm_head.weight"], b.state_dict()["lm_head.weight"])


def test_the_base_and_factors() -> None:
    """`base` gives layers too; a factor of 0 on the output projections makes a layer do nothing."""
    a, base = llama(1), llama(2)
    nothing = {"o_proj": 0, "*.mlp.down_proj.weight": 0}
    slices = [{"model": "a", "layers": [0, 4]}, {"model": "base", "layers": [0, 2], "scale": nothing}]
    out = stacked(Passthrough(slices=slices), {"a": a}, base)
    made = module(transformers.LlamaForCausalLM, out)
    assert len(made.model.layers) == 6
    torch.testing.assert_close(logits(made), logits(a))
    half = stacked(Passthrough(scale=0.5), {"a": a})
    assert all(torch.equal(half[name], tensor * 0.5) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("decoder", [1, 2])
def test_t5_keeps_its_positions_first(decoder: int, tmp_path: Path) -> None:
    """Relative positions stay in the first block, whichever layer comes to stand there; both stacks have counts."""
    a, b = t5(1, decoder=decoder), t5(2, decoder=decoder)
    slices = [
        {"model": "b", "layers": [1, 3], "stack": "encoder"},
        {"model": "a", "layers": [0, 2], "stack": "encoder.block"},
        {"model": "a", "stack": "decoder"},
        {"model": "b", "stack": "decoder"},
    ]
    out = stacked(Passthrough(slices=slices, outer="a"), {"a": a, "b": b}, folder=tmp_path / "out")
    assert (out.config["num_layers"], out.config["num_decoder_layers"]) == (4, 2 * decoder)
    bias = [name for name in out if "relative_attention_bias" in name]
    assert [name.split(".layer.")[0] for name in bias] == ["decoder.block.0", "encoder.block.0"]
    assert torch.equal(out[bias[1]], b.state_dict()[bias[1]])
    made = module(transformers.T5ForConditionalGeneration, out)
    expected = t5(3, layers=4, decoder=2 * decoder)
    for stack, parts in (
        ("encoder", [*b.encoder.block[1:3], *a.encoder.block[:2]]),
        ("decoder", [*a.decoder.block, *b.decoder.block]),
    ):
        for block, part in zip(getattr(expected, stack).block, parts, strict=True):
            block.load_state_dict(part.state_dict(), strict=False)
    first = expected.encoder.block[0].layer[0].SelfAttention
    first.relative_attention_bias.load_state_dict(
        b.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.state_dict()
    )
    for name in ("encoder.final_layer_norm", "decoder.final_layer_norm", "shared", "lm_head"):
        expected.get_submodule(name).load_state_dict(a.get_submodule(name).state_dict())
    assert torch.equal(logits(made), logits(expected))
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(loaded), logits(expected))


def test_one_stack_alone_changes() -> None:
    """The decoder of T5 is as deep as the encoder where its config is silent: then the number is written out."""
    a = t5(1, layers=2, decoder=2)
    taken = MemoryCheckpoint.of_module(a)
    config = {key: value for key, value in taken.config.items() if key != "num_decoder_layers"}
    silent = MemoryCheckpoint(a.state_dict(), config)
    for stack, expected in (("encoder", (1, 2)), ("decoder", (2, 1))):
        out = fuse(Passthrough(slices=[{"model": "a", "layers": [1, 2], "stack": stack}]), {"a": silent})
        assert (out.config["num_layers"], out.config["num_decoder_layers"]) == expected
        assert logits(module(transformers.T5ForConditionalGeneration, out)).shape == (1, 6, 40)


def test_gpt2() -> None:
    torch.manual_seed(0)
    a = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2)).eval()
    out = stacked(Passthrough(slices=[{"model": "a", "layers": [1, 3]}]), {"a": a})
    assert out.config["n_layer"] == 2
    expected = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)
    ).eval()
    expected.load_state_dict(a.state_dict(), strict=False)
    for new, old in ((0, 1), (1, 2)):
        expected.transformer.h[new].load_state_dict(a.transformer.h[old].state_dict())
    assert torch.equal(logits(module(transformers.GPT2LMHeadModel, out)), logits(expected))


def test_what_a_config_lists_by_layer_follows() -> None:
    names = [f"model.layers.{i}.w" for i in range(4)]
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "full", "sliding"],
        "no_rope_layers": [1, 1, 1, 0],
        "mlp_only_layers": [0, 3],
        "rope_sections": [1, 2, 3, 4],
        "architectures": ["X"],
    }
    out = relayered(config, stacks_of(names), {"model.layers": [2, 3, 3, 0, 1]})
    assert out == {
        "num_hidden_layers": 5,
        "layer_types": ["full", "sliding", "sliding", "full", "sliding"],
        "no_rope_layers": [1, 0, 0, 1, 1],
        "mlp_only_layers": [1, 2, 3],
        "rope_sections": [1, 2, 3, 4],
        "architectures": ["X"],
    }
    assert config["num_hidden_layers"] == 4
    towers = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}}
    both = [
        *(f"vision_model.encoder.layers.{i}.w" for i in range(4)),
        *(f"text_model.encoder.layers.{i}.w" for i in range(4)),
    ]
    out = relayered(towers, stacks_of(both), {"vision_model.encoder.layers": [0, 1]})
    assert out == {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 2}}
    assert relayered({}, stacks_of(names), {"model.layers": [0]}) == {}


def test_sliding_and_full_layers_follow(tmp_path: Path) -> None:
    """A model whose layers attend differently: entry by entry of `layer_types`, checked by running it."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        **SMALL, num_hidden_layers=3, num_key_value_heads=2, use_sliding_window=True, sliding_window=2,
        max_window_layers=0, layer_types=["full_attention", "sliding_attention", "full_attention"],
        tie_word_embeddings=True,
    )  # fmt: skip
    a = transformers.Qwen2ForCausalLM(config).eval()
    out = stacked(Passthrough(slices=[{"model": "a", "layers": [1, 3]}]), {"a": a}, folder=tmp_path / "out")
    assert list(out.config["layer_types"]) == ["sliding_attention", "full_attention"]
    assert not any("lm_head" in name for name in out), "tied tensors stay one"
    loaded = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "out").eval()
    a.model.layers = a.model.layers[1:]
    a.config.layer_types, a.config.num_hidden_layers = a.config.layer_types[1:], 2
    assert torch.equal(logits(loaded), logits(a))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"slices": [{"model": "c", "layers": [0, 2]}]}, r"slices\[0\].model.*'c'"),
        ({"slices": [{"model": "a", "layers": [0, 9]}]}, r"slices\[0\].layers=\[0,9\].* has 4 layers"),
        ({"slices": [{"model": "a", "layers": [2, 2]}]}, r"slices\[0\].layers"),
        ({"slices": [{"model": "a", "layers": [0, 1.5]}]}, r"slices\[0\].layers"),
        ({"slices": [{"model": "a", "layer": [0, 1]}]}, "layer"),
        ({"slices": [{"layers": [0, 1]}]}, r"slices\[0\].model is missing"),
        ({"slices": [{"model": "a", "scale": "x"}]}, r"slices\[0\].scale=x"),
        ({"slices": [{"model": "a", "stack": "decoder"}]}, "decoder"),
        ({"slices": [{"model": "base"}]}, "no base"),
        ({"outer": "z"}, "method.outer"),
    ],
)
def test_mistakes(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        stacked(Passthrough(**fields), {"a": llama(1)})


def test_more_mistakes() -> None:
    """Several stacks and none named, no layers, a config that contradicts the tensors, NaN."""
    with pytest.raises(ConfigError, match=r"encoder\.block"):
        stacked(Passthrough(slices=[{"model": "a"}]), {"a": t5(1)})
    with pytest.raises(ConfigError, match="no numbered layers"):
        fuse(Passthrough(slices=[{"model": "a"}]), {"a": {"w": torch.ones(2)}})
    wrong = MemoryCheckpoint(llama(1).state_dict(), {"num_hidden_layers": 5})
    with pytest.raises(ConfigError, match="num_hidden_layers=5"):
        fuse(Passthrough(slices=[{"model": "a", "layers": [0, 2]}]), {"a": wrong})
    out = fuse(Passthrough(), {"a": {"w": torch.tensor([1.0, 2.0])}})
    assert out["w"].tolist() == [1.0, 2.0]
    with pytest.raises(NonFiniteError, match="'w'"):
        fuse(Passthrough(), {"a": {"w": torch.tensor([1.0, float("nan")])}})


def test_dtypes_are_those_of_the_reference() -> None:
    """A model stored in another dtype is cast as it is read; integers stay."""
    a = {"m.layers.0.w": torch.randn(4, 3), "m.layers.0.n": torch.tensor(3), "m.layers.1.w": torch.randn(4, 3)}
    a["m.layers.1.n"] = torch.tensor(4)
    b = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in a.items()}
    method = Passthrough(slices=[{"model": "b", "layers": [1, 2], "scale": 3}, {"model": "a"}])
    out = fuse(method, {"a": a, "b": b})
    assert {tensor.dtype for name, tensor in out.items() if name.endswith("w")} == {torch.float32}
    assert torch.equal(out["m.layers.0.w"], b["m.layers.1.w"].float() * 3)
    assert torch.equal(out["m.layers.2.w"], a["m.layers.1.w"])
    assert [int(out[f"m.layers.{i}.n"]) for i in range(3)] == [4, 3, 4]
