"""Tiny models of three architectures, saved as users save them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return _seeded(T5ForConditionalGeneration, config)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=1)
    return _seeded(GPT2LMHeadModel, config)


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=3
    )
    return _seeded(BertForSequenceClassification, config)


def _seeded(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config).eval()
    # Biases and norms start as constants, which would hide mistakes.
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


ARCHITECTURES: dict[str, Callable[[], Any]] = {"t5": t5, "gpt2": gpt2, "bert": bert}


@pytest.fixture(scope="session")
def architectures() -> dict[str, Callable[[], Any]]:
    """Makers of tiny models, each time with the same random weights."""
    return ARCHITECTURES
