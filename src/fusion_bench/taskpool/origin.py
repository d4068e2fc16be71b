"""Where evaluation data came from, for the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """`source`: ``taskpool.data_dir``, ``FUSION_BENCH_DATA``, ``hub cache``, ``datasets cache`` or ``generated``.

    `path`: the folder, or the module that generates; `split`: as the source names it; `commit`: of the Hub's
    repository; `version`: of generated data; `files`: SHA-256 by file name.
    """

    source: str
    path: str
    split: str
    commit: str | None = None
    version: str | None = None
    files: Mapping[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The facts that are known, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def digests(files: list[Path]) -> dict[str, str]:
    """SHA-256 of each file by its name."""
    return {file.name: _sha256(file) for file in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
