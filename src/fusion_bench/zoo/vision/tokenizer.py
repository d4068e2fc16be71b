"""A word-level tokenizer over the words of prompts with classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from .corpus import Captions

# Not the order of CLIP: an end token with id 2 makes transformers look for the largest id instead of the end.
SPECIAL: Final[tuple[str, ...]] = ("<pad>", "<unk>", "<start>", "<end>")
PATTERN: Final = r"\w+|[^\w\s]+"
LENGTH: Final = 16


def vocabulary(captions: Mapping[str, Captions]) -> dict[str, int]:
    """Every word of the captions, in alphabetic order after the special tokens."""
    texts = " ".join(text for prompts in captions.values() for texts in prompts for text in texts)
    return {token: index for index, token in enumerate((*SPECIAL, *sorted(set(re.findall(PATTERN, texts)))))}


def build(captions: Mapping[str, Captions]) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers saves it: pad 0, unknown 1, start 2, end 3."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, unknown, start, end = SPECIAL
    inner = Tokenizer(models.WordLevel(vocabulary(captions), unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 2), (end, 3)]
    )
    wrapper: Any = PreTrainedTokenizerFast
    built: PreTrainedTokenizerFast = wrapper(
        tokenizer_object=inner,
        pad_token=pad,
        unk_token=unknown,
        bos_token=start,
        eos_token=end,
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )
    return built
