"""One expert: the vision tower of the base fine-tuned on the training split of one task."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from .canvas import stream
from .head import seen
from .model import pixels
from .training import Log, batches, train

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel, CLIPVisionModel

    from .tasks import ImageSet

BATCH: Final = 64
STEPS: Final = 300
RATE: Final = 4e-4
# Everything but the matrices of the encoder learns at this share of the rate.
SLOW: Final = 0.1


def finetune(
    base: CLIPModel, head: torch.Tensor, images: ImageSet, task: str, seed: int, log: Log = print
) -> CLIPVisionModel:
    """A tower that starts as that of `base`, trained against the fixed `head` [classes, projection].

    Text tower, visual projection, logit scale stay those of `base`.
    """
    import torch

    model: Any = base
    tower: CLIPVisionModel = copy.deepcopy(model.vision_model)
    model.requires_grad_(False)
    tower.requires_grad_(True)
    stock = batches(images, BATCH, stream("expert", task, seed))

    def loss() -> torch.Tensor:
        drawn, labels = next(stock)
        return torch.nn.functional.cross_entropy(seen(base, tower, pixels(drawn)) @ head.T, torch.from_numpy(labels))

    named = dict(tower.named_parameters())
    factors = [1.0 if name.startswith("encoder.") and value.dim() == 2 else SLOW for name, value in named.items()]
    train(list(named.values()), loss, STEPS, RATE, factors=factors, log=log, title=task)
    return tower
