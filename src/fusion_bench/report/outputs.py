"""Files a run leaves behind: checked before work starts, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_bench.errors import OutputError


def check_file(path: str | Path, key: str) -> Path:
    """Makes the folders of a file to be written later and proves that it can be; OutputError names `key` otherwise."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise OutputError(f"{key}={path}: a folder. Give a file name, as in {key}={path / 'report.json'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise OutputError(
            f"{key}={path}: cannot be written ({error.strerror or error}). Choose another place."
        ) from None
    return path


def check_folder(path: str | Path, key: str) -> Path:
    """Makes a folder to be written to later and proves that it can be; OutputError names `key` otherwise."""
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise OutputError(f"{key}={path}: a file. Give a folder.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"{key}={path}: cannot be written ({error.strerror or error}). Choose another place."
        ) from None
    return path


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON (no NaN, no infinity), written aside and moved into place."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
