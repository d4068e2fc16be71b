"""Pools of text-to-text models under the class path that the documentation of Flan-T5 names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion_bench.modelpool.base import ModelPool
from fusion_bench.modelpool.sources import ListedPool


class AutoModelForSeq2SeqLMPool(ModelPool):
    """Sequence-to-sequence language models, full fine-tunes or adapters, by name.

    `models`: name -> path, Hub name or ``{path, revision}``, or a list of ``{name, path}``; the base is called
    ``_pretrained_``. `tokenizer`: Hub name or folder. Members are opened when first used;
    :meth:`load_model` gives a live module.
    """

    def __init__(self, models: Mapping[str, Any] | list[Any], tokenizer: str | None = None) -> None:
        super().__init__(**ListedPool(models=models, tokenizer=tokenizer).arguments())


Seq2SeqLMPool = AutoModelForSeq2SeqLMPool
