"""Pools of adapters of text-to-text models under the class path that the documentation of Flan-T5 names."""

from __future__ import annotations

from fusion_bench.modelpool.AutoModelForSeq2SeqLM import AutoModelForSeq2SeqLMPool


class PeftModelForSeq2SeqLMPool(AutoModelForSeq2SeqLMPool):
    """A base called ``_pretrained_`` and PEFT adapters on it, folded tensor by tensor when they are read.

    The same as :class:`AutoModelForSeq2SeqLMPool`, which tells adapters from full models by their files.
    """
