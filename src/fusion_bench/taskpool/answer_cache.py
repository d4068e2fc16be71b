"""Answers that earlier evaluations of the same model gave, on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

ENVIRONMENT: Final = "FUSION_BENCH_CACHE"


def folder() -> Path:
    """Where answers are kept: ``answers`` in FUSION_BENCH_CACHE, else in the user's cache folder."""
    given = os.environ.get(ENVIRONMENT)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(given).expanduser() if given else home / "fusion_bench") / "answers"


def prompt_digest(prompt: str) -> str:
    """What stands for a prompt in caches and prediction files: 128 bits of BLAKE2b, in hexadecimal."""
    return hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()


class AnswerCache:
    """Answers of one model under one way of generating, by prompt.

    `content` is everything but the prompt that an answer depends on; its digest names the file. A line is written per
    answer as soon as its batch is done. Readers skip lines that were cut off, so an interrupted evaluation loses one
    batch at most. A folder that cannot be written to costs the reuse, nothing else.
    """

    def __init__(self, content: Mapping[str, Any], place: Path | None = None) -> None:
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:40]
        self.file = (place or folder()) / f"{key}.jsonl"
        self._writable = True

    def read(self) -> dict[str, str]:
        """Every answer so far, by the digest of its prompt."""
        known: dict[str, str] = {}
        try:
            lines = self.file.read_bytes().split(b"\n")
        except OSError:
            return known
        for line in lines:
            try:
                entry = json.loads(line)
                digest, answer = entry["prompt"], entry["answer"]
            except (ValueError, TypeError, KeyError):
                continue
            if isinstance(digest, str) and isinstance(answer, str):
                known[digest] = answer
        return known

    def append(self, answers: Iterable[tuple[str, str]]) -> None:
        """Adds (digest of the prompt, answer) pairs."""
        lines = [json.dumps({"prompt": digest, "answer": answer}) for digest, answer in answers]
        if not self._writable or not lines:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # One write in append mode: two processes may share the file. The leading newline ends a line that an
            # interruption cut off.
            with self.file.open("ab", buffering=0) as stream:
                stream.write(("\n" + "\n".join(lines) + "\n").encode())
        except OSError:
            self._writable = False


class NoCache:
    """Remembers nothing."""

    def read(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def append(self, answers: Iterable[tuple[str, str]]) -> None:
        """Forgets the answers."""
