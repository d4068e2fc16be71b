"""Zero-shot classification: classes are directions of text embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel, PreTrainedTokenizerFast

    from .tasks import ImageSet


def embedded(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> torch.Tensor:
    """Text embeddings of length one, [texts, projection]."""
    model: Any = clip
    tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
    found = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return _unit(model.text_projection(found.pooler_output))


def head(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, classes: Sequence[str], templates: Sequence[str]
) -> torch.Tensor:
    """exp(logit scale) times the class directions, [classes, projection].

    The direction of a class is the mean over templates of its text embeddings, each of length one, made
    length one again (arXiv:2103.00020, section 3.1.4).
    """
    import torch

    with torch.no_grad():
        rows = [embedded(clip, tokenizer, [t.replace("{c}", c) for c in classes]) for t in templates]
        return _unit(torch.stack(rows).mean(dim=0)) * clip.logit_scale.exp()


def seen(clip: CLIPModel, tower: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Image embeddings of length one, [images, projection]: the given tower, the projection of `clip`."""
    model: Any = clip
    return _unit(model.visual_projection(tower(pixel_values=pixels).pooler_output))


def answers(
    clip: CLIPModel, tower: torch.nn.Module, head: torch.Tensor, images: ImageSet, batch: int = 200
) -> torch.Tensor:
    """The class of the nearest direction for each image, [images]."""
    import torch

    from .model import pixels

    with torch.inference_mode():
        parts = [images.images[start : start + batch] for start in range(0, len(images), batch)]
        return torch.cat([(seen(clip, tower, pixels(part)) @ head.T).argmax(dim=1) for part in parts])


def accuracy(clip: CLIPModel, tower: torch.nn.Module, head: torch.Tensor, images: ImageSet) -> float:
    """Share of the images whose answer is their label."""
    return float((answers(clip, tower, head, images).numpy() == images.labels).mean())


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return unit
