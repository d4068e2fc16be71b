"""Pre-training of the base model on the mixed corpus."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

from . import model as tiny
from .corpus import pretraining
from .training import Log, batches, encode, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

BATCH: Final = 64
STEPS: Final = 1600
RATE: Final = 1.5e-2


def pretrain(tokenizer: PreTrainedTokenizerFast, seed: int, log: Log = print) -> T5ForConditionalGeneration:
    """One pass over a corpus of STEPS batches."""
    model = tiny.build(len(tokenizer), seed)
    examples = encode(list(pretraining(seed, STEPS * BATCH)), tokenizer)
    train(model, batches(examples, BATCH, Random(seed)), STEPS, RATE, relative=True, log=log, title="base")
    return model
