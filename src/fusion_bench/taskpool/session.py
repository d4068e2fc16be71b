"""What a text task pool keeps from one evaluation to the next: module, tokenizer, token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import CheckpointError
from fusion_bench.family import family_of
from fusion_bench.taskpool import tokenizer as tokenizers

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.family.seq2seq_lm import Seq2SeqLM
    from fusion_bench.progress import Progress

# Facts of a config.json that tell where a model came from, not what it computes.
_TRIVIA = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})


@dataclass(slots=True)
class LoadedTokenizer:
    """A tokenizer beside the token ids of every text it has seen."""

    source: tokenizers.TokenizerSource
    digest: str
    max_input_length: int
    _inner: Any
    _ids: dict[str, Sequence[int]] = field(default_factory=dict)
    _plain: dict[str, str] = field(default_factory=dict)

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Token ids, cut off at the longest input."""
        from array import array

        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        if new:
            rows = self._inner(new, truncation=True, max_length=self.max_input_length)["input_ids"]
            self._ids.update((text, array("i", row)) for text, row in zip(new, rows, strict=True))
        return [self._ids[text] for text in texts]

    def decode(self, tokens: Any) -> list[str]:
        """Texts without special tokens."""
        texts: list[str] = self._inner.batch_decode(tokens, skip_special_tokens=True)
        return texts

    def through(self, text: str) -> str:
        """`text` as it comes back from encoding and decoding: the form in which a model can produce it."""
        if text not in self._plain:
            [self._plain[text]] = self.decode([list(self.encode([text])[0])])
        return self._plain[text]


@dataclass(slots=True)
class Session:
    """Holds one module and one tokenizer; both are replaced when another kind is asked for."""

    _module: torch.nn.Module | None = None
    _shape: tuple[Any, ...] = ()
    _tokenizer: LoadedTokenizer | None = None

    @property
    def held_tokenizer(self) -> LoadedTokenizer | None:
        """The tokenizer of the last evaluation."""
        return self._tokenizer

    def tokenizer(self, source: tokenizers.TokenizerSource, max_input_length: int) -> LoadedTokenizer:
        """The tokenizer of a folder."""
        held = self._tokenizer
        if held is None or held.source.folder != source.folder or held.max_input_length != max_input_length:
            held = LoadedTokenizer(source, source.digest(), max_input_length, source.load())
            self._tokenizer = held
        return held

    def module(
        self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, threads: int, progress: Progress
    ) -> tuple[Seq2SeqLM, torch.nn.Module]:
        """The checkpoint as a module. The module of an earlier call is filled anew where names and shapes agree."""
        from fusion_bench.family.seq2seq_lm import Seq2SeqLM

        family = family_of(checkpoint.config)
        if isinstance(family, Seq2SeqLM):
            family.check_generation(checkpoint.config)
        shape = _shape(checkpoint, device, dtype)
        reusable = self._module is not None and shape == self._shape
        if not reusable:
            # Given up first: two models need not fit into memory.
            self._module = None
        total = sum(info.nbytes for info in checkpoint.infos.values())
        with progress.bar("loading the model", total, "B") as advance:
            if self._module is not None:
                family.reload(self._module, checkpoint, threads, advance)
            else:
                self._module = family.load(checkpoint, dtype, device, threads, advance)
                self._shape = shape
        if not isinstance(family, Seq2SeqLM):
            raise CheckpointError(f"model_type {checkpoint.config.get('model_type')!r} does not generate text.")
        return family, self._module


def _shape(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    names = tuple((name, info.shape) for name, info in checkpoint.infos.items())
    return (essential(checkpoint.config), names, str(device), str(dtype))


def essential(config: Mapping[str, Any]) -> str:
    """The part of a config that decides what is computed, as canonical JSON."""
    return json.dumps({k: v for k, v in config.items() if k not in _TRIVIA}, sort_keys=True, default=str)


def weights_digest(module: torch.nn.Module) -> str:
    """128 bits of XXH3 over names, dtypes, shapes and values of a module's tensors."""
    import torch
    import xxhash

    whole = xxhash.xxh3_128()
    seen: set[int] = set()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if id(tensor) in seen:
            whole.update(f"{name} is tied\0".encode())
            continue
        seen.add(id(tensor))
        whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        whole.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
    digest: str = whole.hexdigest()
    return digest


def write_lines(file: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines that appear whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.part")
    with draft.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n" for entry in entries)
    draft.replace(file)
