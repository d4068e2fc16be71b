"""The manifest of an output: which files and tensors it consists of, their digests, what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusion_bench.checkpoint.base import BLOCK
from fusion_bench.checkpoint.digests import METHOD
from fusion_bench.checkpoint.sealed import Origin, sealed, unsealed

MANIFEST = "fusion_bench.json"
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and digest of a file; of a weights file `digest` covers its header, the first `head` bytes."""

    size: int
    digest: str
    head: int | None = None


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies (`position` in bytes from the start of `file`), how it is stored, its digest.

    `step`: entries of the pieces that the digest is made of.
    """

    file: str
    position: int
    dtype: str
    shape: tuple[int, ...]
    digest: str
    step: int = BLOCK


@dataclass(frozen=True)
class Manifest:
    """`parts`: sub-folders that are outputs of their own, where one command made several models."""

    files: Mapping[str, FileEntry] = field(default_factory=dict)
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)
    origin: Origin | None = None
    parts: tuple[str, ...] = ()

    def encoded(self) -> bytes:
        """The content of the manifest's file."""
        value: dict[str, Any] = {"format": _FORMAT, "digest": METHOD, "origin": self.origin}
        if self.parts:
            value["parts"] = list(self.parts)
        else:
            value["files"] = {name: _short(entry) for name, entry in self.files.items()}
            value["tensors"] = {name: _short(entry) for name, entry in self.tensors.items()}
        return sealed(value)


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file; OSError where there is none, ValueError where it is damaged or of another kind."""
    value = unsealed(path)
    try:
        if value["format"] != _FORMAT:
            raise ValueError(f"{path}: format {value['format']}")
        found = Manifest(
            {name: FileEntry(**entry) for name, entry in value.get("files", {}).items()},
            {name: _tensor(entry) for name, entry in value.get("tensors", {}).items()},
            value["origin"],
            tuple(value.get("parts", ())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    # A manifest of somebody else's must not reach outside its own folder.
    if not all(is_plain_name(name) for name in (*found.files, *found.parts)):
        raise ValueError(f"{path}: names files outside its own folder")
    return found


def is_plain_name(name: str) -> bool:
    """Whether `name` is a file's own name, without folders."""
    return Path(name).name == name and name not in ("", ".", "..")


def _tensor(entry: dict[str, Any]) -> TensorEntry:
    return TensorEntry(**{**entry, "shape": tuple(entry["shape"])})


def _short(entry: FileEntry | TensorEntry) -> dict[str, Any]:
    """Without what is as usual."""
    value = asdict(entry)
    for key, usual in (("head", None), ("step", BLOCK)):
        if key in value and value[key] == usual:
            del value[key]
    return value
