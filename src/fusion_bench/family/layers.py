"""Layers told by tensor names, in the way that most architectures name them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fusion_bench.checkpoint.base import TensorInfo
from fusion_bench.checkpoint.structure import Structure

# Tables that are looked up, output layers over a vocabulary, projections into the joint space of two towers.
_NOT_LINEAR: Final = re.compile(
    r"(^|[._])(embed\w*|\w*embeddings?|shared|wte|wpe|lm_head|embed_out|output_projection|relative_attention_bias"
    r"|relative_position_bias_table|visual_projection|text_projection)([._]|$)"
    r"|(^|\.)proj$"
)
# Of vision transformers, the convolution and the norm before the blocks, too.
_BEFORE: Final = re.compile(
    r"(^|[._])(embed\w*|\w*embeddings?|shared|wte|wpe)([._]|$)|(^|\.)(pre_layrnorm|ln_pre|conv1)\."
)
_IN_BY_OUT: Final = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")
_IN_BY_OUT_TYPES: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


def structure_of(config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> Structure:
    """The layers of a model with this config and these tensors."""
    linear = frozenset(name for name, info in infos.items() if _is_linear(name, info))
    turned = config.get("model_type") in _IN_BY_OUT_TYPES
    transposed = frozenset(name for name in linear if turned and _IN_BY_OUT.search(name))
    blocks = _blocks(infos)
    before = frozenset(
        name for name in infos if name not in blocks and _BEFORE.search(name) and "embed_out" not in name
    )
    return Structure(linear, transposed, blocks, before)


def _is_linear(name: str, info: TensorInfo) -> bool:
    return len(info.shape) == 2 and info.floating and not name.endswith("bias") and not _NOT_LINEAR.search(name)


def _blocks(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[str, int]] = {}
    for name in names:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts[:-1]) if part.isdigit()), None)
        if at is not None:
            places[name] = (".".join(parts[:at]), int(parts[at]))
    counts: dict[str, int] = {}
    for stack, index in places.values():
        counts[stack] = max(counts.get(stack, 0), index + 1)
    return {name: (index, counts[stack]) for name, (stack, index) in places.items()}
