"""A word-level tokenizer over the closed vocabulary of the suite.

A number such as 3.4 is three tokens; runs of punctuation are one token, which keeps prompts short.
"""

from __future__ import annotations

import re
from random import Random
from typing import TYPE_CHECKING, Any, Final

from .auxiliary import NOTHING, TEMPLATE
from .prompts import phrases, render
from .tasks import TASKS, drafts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL: Final[tuple[str, ...]] = ("<pad>", "</s>", "<unk>")
PATTERN: Final = r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]+"
_SAMPLE = 4000


def vocabulary() -> dict[str, int]:
    """Every token that a prompt or a target can contain, in alphabetic order after the special ones."""
    found = set("0123456789") | {".", ","}
    for text in (*phrases(), TEMPLATE, NOTHING):
        found.update(re.findall(PATTERN, text))
    for task in TASKS:
        stream = drafts(task, "train", Random(f"vocabulary/{task}"))
        for _ in range(_SAMPLE):
            draft = next(stream)
            prompt, target = render(task, {**draft.columns, "label": draft.label})
            found.update(re.findall(PATTERN, f"{prompt} {target}"))
    return {token: index for index, token in enumerate((*SPECIAL, *sorted(found)))}


def build() -> PreTrainedTokenizerFast:
    """The tokenizer as transformers saves it: pad 0, end 1, unknown 2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, end, unknown = SPECIAL
    inner = Tokenizer(models.WordLevel(vocabulary(), unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    # The WordPiece decoder is the one that joins with single spaces; the last step closes numbers.
    inner.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), decoders.Replace(" . ", ".")]
    )
    wrapper: Any = PreTrainedTokenizerFast
    built: PreTrainedTokenizerFast = wrapper(
        tokenizer_object=inner,
        pad_token=pad,
        eos_token=end,
        unk_token=unknown,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    return built
