"""The tiny T5 of the suite, built from nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .whole import whole

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

SHAPE: Final[dict[str, Any]] = {
    "d_model": 96,
    "d_kv": 16,
    "num_heads": 6,
    "d_ff": 192,
    "num_layers": 3,
    "num_decoder_layers": 1,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def build(vocabulary_size: int, seed: int) -> T5ForConditionalGeneration:
    """A new model with an output layer of its own, as Flan-T5 has.

    Comparing two texts is what most tasks ask, and from the stock initialisation it is found late
    or not at all. So the encoder's heads start with a division of labour, see ``_divide``.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    # Through a dictionary: the argument is accepted, yet no field of the class.
    settings: dict[str, Any] = {**SHAPE, "vocab_size": vocabulary_size, "tie_word_embeddings": False}
    config = T5Config(**settings)
    model = T5ForConditionalGeneration(config)
    _untie(model)
    with torch.no_grad():
        model.lm_head.weight.normal_(0.0, config.d_model**-0.5)
        _divide(model)
    return model


def _divide(model: T5ForConditionalGeneration) -> None:
    """Two heads look at the neighbours, the others at equal words further away.

    Equal: queries start as a multiple of the keys. Further away: the position bias, which all
    layers share, disfavours a word itself with its neighbourhood. Buckets count distances 0 to 7
    backwards, from 16 on forwards.
    """
    config = model.config
    blocks: Any = model.encoder.block
    bias = blocks[0].layer[0].SelfAttention.relative_attention_bias.weight
    bias[1, 0], bias[17, 1] = 4.0, 4.0
    bias[0:5, 2:] -= 5.0
    bias[17:21, 2:] -= 5.0
    near = 2 * config.d_kv
    for block in blocks:
        attention = block.layer[0].SelfAttention
        attention.q.weight[near:] = attention.k.weight[near:] * (6.0 / config.d_kv)


def _untie(model: T5ForConditionalGeneration) -> None:
    # transformers 5 rewrites tie_word_embeddings=False to True and keeps one tensor for both ends.
    import torch

    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path, dtype: torch.dtype) -> None:
    """Write weights, configuration and tokenizer as ``from_pretrained`` reads them."""
    from transformers import GenerationConfig

    settings: Any = GenerationConfig
    saved: Any = copy.deepcopy(model).to(dtype)
    saved.generation_config = settings(
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, do_sample=False, num_beams=1
    )
    with whole(folder) as part:
        saved.save_pretrained(part)
        tokenizer.save_pretrained(part)
        # Readers of transformers 4 tie the head, and rescale before it, unless the file says false;
        # they also know the tokenizer's class by its older name alone.
        _rewrite(part / "config.json", tie_word_embeddings=False)
        _rewrite(part / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _rewrite(path: Path, **values: object) -> None:
    settings = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def load(folder: Path) -> T5ForConditionalGeneration:
    """The saved model in single precision."""
    import torch
    from transformers import T5ForConditionalGeneration

    model: T5ForConditionalGeneration = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model
