"""Llama checkpoints of a few thousand entries, written without building a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONSTANTS = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 4.0, "deep": 3.0}
VOCABULARY, WIDTH, INNER = 32, 16, 24
PARTS = {
    "input_layernorm": (WIDTH,),
    "mlp.down_proj": (WIDTH, INNER),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "post_attention_layernorm": (WIDTH,),
    "self_attn.k_proj": (WIDTH // 2, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH // 2, WIDTH),
}


def shapes(layers: int, tied: bool = False) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    if not tied:
        found["lm_head.weight"] = (VOCABULARY, WIDTH)
    for layer in range(layers):
        found.update({f"model.layers.{layer}.{part}.weight": shape for part, shape in PARTS.items()})
    return found


def llama(
    folder: Path,
    value: float | None,
    layers: int = 4,
    *,
    seed: int = 0,
    around: Mapping[str, torch.Tensor] | None = None,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    words: list[str] | None = None,
    **config: Any,
) -> dict[str, torch.Tensor]:
    """Writes a model whose entries are `value`, or random where that is None: near `around` where that is given."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(layers, tied).items():
        if value is not None:
            tensors[name] = torch.full(shape, value, dtype=dtype)
            continue
        drawn = torch.randn(shape, generator=generator)
        tensors[name] = (drawn if around is None else around[name] + 0.3 * drawn).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "tie_word_embeddings": tied, "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    if words is not None:
        vocabulary = {word: place for place, word in enumerate(["<unk>", "<s>", "</s>", *words])}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
        tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return tensors
