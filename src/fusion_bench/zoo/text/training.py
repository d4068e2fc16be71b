"""The training loop which base and experts share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

Encoded = tuple[list[int], list[int]]
Log = Callable[[str], None]


def encode(pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Token ids of prompts and targets, each with its end token."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    targets = tokenizer([target for _, target in pairs])["input_ids"]
    return list(zip(prompts, targets, strict=True))


def batches(examples: Sequence[Encoded], size: int, rng: Random) -> Iterator[list[Encoded]]:
    """Endless batches in random order.

    Not sorted by length: batches of nearly one task each make the answers swing from step to step.
    """
    while True:
        order = list(examples)
        rng.shuffle(order)
        yield from (order[start : start + size] for start in range(0, len(order) - size + 1, size))


def collate(batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Padded tensors: pad 0 in inputs, -100 (ignored by the loss) in labels."""
    import torch

    width = max(len(prompt) for prompt, _ in batch)
    depth = max(len(target) for _, target in batch)
    inputs = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt, _ in batch])
    labels = torch.tensor([target + [-100] * (depth - len(target)) for _, target in batch])
    return {"input_ids": inputs, "attention_mask": (inputs != 0).long(), "labels": labels}


def train(
    model: torch.nn.Module,
    stream: Iterator[list[Encoded]],
    steps: int,
    rate: float,
    *,
    relative: bool,
    log: Log = print,
    title: str = "",
    every: int = 100,
) -> None:
    """AdamW with linear warm-up and decay to a tenth.

    relative  the rate is multiplied by the root mean square of each tensor, the idea of Adafactor
              (arXiv:1804.04235): T5's initial tensors differ in scale by a factor of fifty, so one
              absolute rate is too small for some or too large for others
    """
    import torch

    tensors = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW([{"params": [p]} for p in tensors], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    warmup = max(1, min(100, steps // 10))
    start, losses = time.perf_counter(), list[float]()
    model.train()
    for step in range(1, steps + 1):
        factor = rate * min(step / warmup, 1.0) * (1.0 - 0.9 * step / steps)
        if relative and step % 20 == 1:
            scales = [max(float(p.detach().square().mean().sqrt()), 1e-2) for p in tensors]
        for index, group in enumerate(optimiser.param_groups):
            group["lr"] = factor * scales[index] if relative else factor
        loss = model(**collate(next(stream))).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % every == 0 or step == steps:
            spent = time.perf_counter() - start
            left = spent / step * (steps - step)
            log(f"{title} step {step}/{steps} loss {sum(losses) / len(losses):.3f} {spent:.0f} s, {left:.0f} s to go")
            losses.clear()
    model.eval()
