"""Pre-training of the base: images against captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from . import model as tiny
from .canvas import stream
from .head import embedded, seen
from .training import Batch, Log, train

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel, PreTrainedTokenizerFast

    from .corpus import Captions

BATCH: Final = 16
STEPS: Final = 3000
RATE: Final = 1.5e-3
DECAY: Final = 0.05
_LOUDEST: Final = float(np.log(100.0))
# Batches of each task that tell the model which patches there are.
_SAMPLE: Final = 20


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    streams: Mapping[str, Iterator[Batch]],
    captions: Mapping[str, Captions],
    seed: int,
    log: Log = print,
) -> CLIPModel:
    """A contrastive model of what `streams` bring, whose labels count `captions`, which are given for each prompt.

    Each step takes one batch of each task and one prompt for all of its classes. An image's caption is contrasted
    with those of its task, then with those of all tasks: the second alone is soon content with naming the task.
    """
    import torch

    names = list(streams)
    sample = [next(streams[name])[0] for name in names for _ in range(_SAMPLE)]
    model = tiny.build(len(tokenizer), np.concatenate(sample), seed)
    counts = {name: len(captions[name][0]) for name in names}
    first = dict(zip(names, np.cumsum([0, *counts.values()])[:-1].tolist(), strict=True))
    rng = stream("prompts", seed)

    def loss() -> torch.Tensor:
        prompts: list[str] = []
        for name in names:
            prompts += captions[name][rng.randint(len(captions[name]))]
        drawn = [next(streams[name]) for name in names]
        pixels = tiny.pixels(np.concatenate([images for images, _ in drawn]))
        logits = seen(model, model.vision_model, pixels) @ embedded(model, tokenizer, prompts).T
        logits = logits * model.logit_scale.clamp(max=_LOUDEST).exp()
        named = [torch.from_numpy(labels) for _, labels in drawn]
        among_all = torch.cat([labels + first[name] for name, labels in zip(names, named, strict=True)])
        total = 0.5 * torch.nn.functional.cross_entropy(logits, among_all)
        for index, (name, labels) in enumerate(zip(names, named, strict=True)):
            rows = slice(index * len(labels), (index + 1) * len(labels))
            own = logits[rows, first[name] : first[name] + counts[name]]
            total = total + torch.nn.functional.cross_entropy(own, labels) / len(names)
        return total

    train(list(model.parameters()), loss, STEPS, RATE, decay=DECAY, log=log, title="base")
    return model
