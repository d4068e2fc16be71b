"""The tokenizer of an evaluation: which one, from where, with which content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fusion_bench.errors import ConfigError

_WEIGHED: Final = (
    "tokenizer.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
)
_FILES: Final = (
    *_WEIGHED,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "target.spm",
    "tokenizer.model",
)
_VOCABULARIES: Final = (*_WEIGHED, "tokenizer.model")


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """A folder that holds a tokenizer, and the name it was asked for by."""

    asked: str
    folder: Path

    def load(self) -> Any:
        """The tokenizer as transformers builds it."""
        from transformers import AutoTokenizer

        auto: Any = AutoTokenizer
        try:
            return auto.from_pretrained(self.folder)
        except Exception as fault:  # a broken file surfaces as anything
            raise ConfigError(f"the tokenizer in {self.folder} cannot be read: {fault}") from fault

    def digest(self) -> str:
        """SHA-256 over the names and bytes of its files."""
        whole = hashlib.sha256()
        for file in _present(self.folder):
            content = file.read_bytes()
            whole.update(f"{file.name}\0{len(content)}\0".encode())
            whole.update(content)
        return whole.hexdigest()


def find(asked: str | None, candidates: Iterable[Path | str]) -> TokenizerSource:
    """The tokenizer that is `asked` for, else the first of `candidates` that has one.

    Each is a folder or a name on the Hub, which is looked up in the cache first. ConfigError names what was tried.
    Imports neither torch nor transformers.
    """
    places: Sequence[Path | str] = [asked] if asked is not None else list(dict.fromkeys(candidates))
    tried: list[str] = []
    for place in places:
        folder, problem = _located(place)
        if folder is not None:
            return TokenizerSource(str(place), folder)
        tried.append(f"  {place}: {problem}")
    looked = "Tried:\n" + "\n".join(tried) + "\n" if tried else "No model of the pool has a folder.\n"
    raise ConfigError(
        f"taskpool.tokenizer: no tokenizer found. {looked}"
        "Set taskpool.tokenizer to a folder with tokenizer.json or spiece.model, or to a name on the Hub."
    )


def _located(place: Path | str) -> tuple[Path | None, str]:
    folder = Path(place).expanduser()
    if folder.is_dir():
        return (folder, "") if _usable(folder) else (None, "a folder without tokenizer files")
    name = str(place)
    if isinstance(place, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return None, "no such folder"
    return _on_hub(name)


def _on_hub(name: str) -> tuple[Path | None, str]:
    from huggingface_hub import constants, is_offline_mode, snapshot_download

    patterns = list(_FILES)
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        if _usable(folder):
            return folder, ""
    except Exception:  # not cached, or no name that the Hub could know: the second try tells which
        pass
    if is_offline_mode():
        return None, f"not in the Hub cache {constants.HF_HUB_CACHE}, and offline (fetch it with `hf download {name}`)"
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as fault:  # network faults come as errors of several libraries
        reason = str(fault).strip().splitlines()
        return (
            None,
            f"not in the Hub cache {constants.HF_HUB_CACHE}, and: {reason[0] if reason else type(fault).__name__}",
        )
    return (folder, "") if _usable(folder) else (None, "its repository has no tokenizer files")


def _present(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(_FILES) if (folder / name).is_file()]


def _usable(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _VOCABULARIES)
