"""Full digests of input files, for reports that must prove what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def with_digests(identity: Any) -> Any:
    """`identity` with ``sha256`` added to every file it lists (``{"path": folder, "files": [{"file": name}]}``)."""
    if isinstance(identity, (list, tuple)):
        return [with_digests(item) for item in identity]
    if not isinstance(identity, Mapping):
        return identity
    found = {key: with_digests(value) for key, value in identity.items()}
    path, files = identity.get("path"), identity.get("files")
    if isinstance(path, str) and isinstance(files, (list, tuple)):
        found["files"] = [{**entry, "sha256": sha256(_file(Path(path), entry["file"]))} for entry in files]
    return found


def _file(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
