"""Model families, found by the model_type of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion_bench.family.base import ModelFamily
from fusion_bench.family.ties import Ties

__all__ = ["ModelFamily", "Ties", "family_of"]


def family_of(config: Mapping[str, Any]) -> ModelFamily:
    """The family of a model with this config.json; one that refuses to load where none is known.

    Imports neither torch nor transformers.
    """
    from fusion_bench.family.generic import GenericFamily
    from fusion_bench.family.seq2seq_lm import MODEL_TYPES, Seq2SeqLM

    return Seq2SeqLM() if config.get("model_type") in MODEL_TYPES else GenericFamily()
