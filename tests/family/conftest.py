"""Tiny encoder-decoder models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

SHAPE: dict[str, Any] = {
    "vocab_size": 48,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}


@pytest.fixture
def make_t5() -> Callable[..., Any]:
    """A T5 with random weights; `untied`: with an output layer of its own, as Flan-T5; `end`: bias towards stopping."""

    def make(seed: int = 0, untied: bool = False, end: float = 1.0, **config: Any) -> T5ForConditionalGeneration:
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(T5Config(**{**SHAPE, **config}, tie_word_embeddings=not untied)).eval()
        if untied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
        with torch.no_grad():
            model.lm_head.weight[1] *= end
        return model

    return make


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of twelve rows with padding at their ends, beside the mask."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 48, (12, 14), generator=generator)
    mask = (torch.arange(14) < torch.randint(3, 15, (12, 1), generator=generator)).long()
    return ids * mask, mask
