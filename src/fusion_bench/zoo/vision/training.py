"""The training loop which base and experts share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .tasks import ImageSet

if TYPE_CHECKING:
    import torch

Log = Callable[[str], None]
Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def batches(images: ImageSet, size: int, rng: np.random.RandomState) -> Iterator[Batch]:
    """Endless batches of images with labels in random order."""
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield images.images[chosen], images.labels[chosen]


def train(
    parameters: list[torch.nn.Parameter],
    loss: Callable[[], torch.Tensor],
    steps: int,
    rate: float,
    *,
    decay: float = 0.0,
    factors: Sequence[float] | None = None,
    log: Log = print,
    title: str = "",
    every: int = 100,
) -> None:
    """AdamW with linear warm-up over a tenth of the steps, then a cosine to zero; `loss` draws its own batch.

    factors  by which the rate of each parameter is multiplied; one where None
    """
    import torch

    groups = [{"params": [parameter]} for parameter in parameters]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=decay)
    warmup = max(1, min(200, steps // 10))
    start, losses = time.perf_counter(), list[float]()
    for step in range(1, steps + 1):
        past = max(0.0, (step - warmup) / max(1, steps - warmup))
        now = rate * min(step / warmup, 1.0) * 0.5 * (1.0 + float(np.cos(np.pi * past)))
        for index, group in enumerate(optimiser.param_groups):
            group["lr"] = now * (1.0 if factors is None else factors[index])
        value = loss()
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(value.item())
        if step % every == 0 or step == steps:
            spent = time.perf_counter() - start
            left = spent / step * (steps - step)
            log(f"{title} step {step}/{steps} loss {sum(losses) / len(losses):.3f} {spent:.0f} s, {left:.0f} s to go")
            losses.clear()
