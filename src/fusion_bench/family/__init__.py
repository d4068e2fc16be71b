"""Model families, found by the model_type of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion_bench.family.base import ModelFamily
from fusion_bench.family.ties import Ties

__all__ = ["ModelFamily", "Ties", "family_of", "runnable_types"]


def family_of(config: Mapping[str, Any]) -> ModelFamily:
    """The family of a model with this config.json; one that refuses to load where none is known.

    Imports neither torch nor transformers.
    """
    from fusion_bench.family import clip_vision, image_classifier, open_clip, seq2seq_lm
    from fusion_bench.family.generic import GenericFamily

    kind = config.get("model_type")
    if kind in seq2seq_lm.MODEL_TYPES:
        return seq2seq_lm.Seq2SeqLM()
    if kind in clip_vision.TOWERS:
        return clip_vision.ClipVision()
    if kind == open_clip.MODEL_TYPE:
        return open_clip.OpenClipVision()
    if kind in image_classifier.MODEL_TYPES:
        return image_classifier.ImageClassification()
    return GenericFamily()


def runnable_types() -> frozenset[str]:
    """The model types whose models can be run, not only fused."""
    from fusion_bench.family import clip_vision, image_classifier, open_clip, seq2seq_lm

    return frozenset(
        {*seq2seq_lm.MODEL_TYPES, *clip_vision.TOWERS, open_clip.MODEL_TYPE, *image_classifier.MODEL_TYPES}
    )
