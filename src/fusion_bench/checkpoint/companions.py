"""The files beside the weights of a written model: its config, tokenizer and generation settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
from fusion_bench.checkpoint.dtypes import TORCH_NAMES

_COPIED = (
    "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model", "added_tokens.json",
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "chat_template*",
)  # fmt: skip
# What output layers over the vocabulary are called; each may share its tensor with the embeddings.
_HEADS = ("lm_head", "embed_out", "output_projection")
# transformers takes tie_word_embeddings=false in their configs to mean, too, that decoder outputs are not scaled.
_SCALED_WHERE_TIED = ("t5", "longt5", "pop2piano")


def companion_files(folder: Path | None) -> dict[str, Path]:
    """Tokenizer and generation files in `folder`, by name."""
    if folder is None or not folder.is_dir():
        return {}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: path for path in files if any(fnmatch(path.name, pattern) for pattern in _COPIED)}


def written_config(
    checkpoint: Checkpoint, infos: Mapping[str, TensorInfo], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json for `checkpoint` written with `infos`: what it says of dtype and tied embeddings is made true.

    `overrides` win over everything. Empty when the checkpoint has no config and there are no overrides.
    """
    config: dict[str, Any] = json.loads(json.dumps(dict(checkpoint.config), default=str))
    if config:
        if has_own_head(infos) and config.get("tie_word_embeddings") is not False:
            # transformers 5 saves true even for models whose head is untied; older readers would then tie it.
            if config.get("model_type") in _SCALED_WHERE_TIED:
                config.setdefault("scale_decoder_outputs", True)
            config["tie_word_embeddings"] = False
        dtype = main_dtype(infos)
        if dtype is not None:
            _set_dtype(config, TORCH_NAMES[dtype])
            config.setdefault("dtype", TORCH_NAMES[dtype])
    config.update(overrides or {})
    return config


def has_own_head(infos: Mapping[str, TensorInfo]) -> bool:
    """Whether the output layer over the vocabulary is a stored tensor of its own."""
    heads = [name for name in infos if name.endswith(".weight") and name.split(".")[-2] in _HEADS]
    return any(
        info.shape == infos[head].shape and name != head for head in heads for name, info in infos.items()
    )  # an output layer alone, without embeddings of its shape, has nothing to be tied with


def main_dtype(infos: Mapping[str, TensorInfo]) -> str | None:
    """The floating dtype that most entries are stored in."""
    entries: dict[str, int] = {}
    for info in infos.values():
        if info.floating:
            entries[info.dtype] = entries.get(info.dtype, 0) + info.numel
    return max(sorted(entries), key=lambda dtype: entries[dtype]) if entries else None


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            config[key] = dtype
        elif isinstance(value, dict):
            _set_dtype(value, dtype)
