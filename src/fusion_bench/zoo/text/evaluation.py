"""Scores of a model on the suite: exact match, or rank correlation for stsb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from .prompts import render
from .tasks import TASKS, load
from .training import collate, encode

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

MAX_LENGTH: Final = 10


def greedy(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], batch: int = 320
) -> list[str]:
    """Greedy answers of at most MAX_LENGTH tokens, the start token counted.

    Equal to ``generate(do_sample=False, num_beams=1, max_length=10)``; batches are sorted by length.
    """
    import torch

    encoded = encode([(prompt, "") for prompt in prompts], tokenizer)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))
    answers = [""] * len(encoded)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            inputs = collate([encoded[i] for i in rows])
            tokens = _decode(model, inputs["input_ids"], inputs["attention_mask"])
            for i, text in zip(rows, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                answers[i] = text
    return answers


def _decode(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    states = model.get_encoder()(input_ids=ids, attention_mask=mask)
    tokens = torch.zeros((len(ids), 1), dtype=torch.long)
    done = torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(MAX_LENGTH - 1):
        # No cache: at most nine tokens through one decoder layer cost less than keeping one.
        out = model(encoder_outputs=states, attention_mask=mask, decoder_input_ids=tokens, use_cache=False)
        last = out.logits[:, -1].argmax(-1).masked_fill(done, 0)
        tokens = torch.cat((tokens, last[:, None]), dim=1)
        done |= last == 1
        if bool(done.all()):
            break
    return tokens


def accuracy(answers: Sequence[str], targets: Sequence[str]) -> float:
    """Share of answers which equal their targets character by character."""
    return sum(a == t for a, t in zip(answers, targets, strict=True)) / len(targets)


def spearman(answers: Sequence[str], targets: Sequence[str]) -> float:
    """Rank correlation of the numbers read; an answer that is no number counts as 0.0, a constant gives 0."""
    from scipy.stats import spearmanr

    read = [_number(answer) for answer in answers]
    if len(set(read)) == 1:
        return 0.0
    return float(spearmanr(read, [float(t) for t in targets]).statistic)


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() else 0.0


def score(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    split: str,
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
) -> dict[str, float]:
    """The primary metric of each task, as a fraction."""
    scores: dict[str, float] = {}
    for task in tasks:
        prompts, targets = zip(*(render(task, row) for row in load(task, split)[:limit]), strict=True)
        metric = spearman if task == "stsb" else accuracy
        scores[task] = metric(greedy(model, tokenizer, prompts), targets)
    return scores
