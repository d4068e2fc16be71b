"""The files of a data set in the Hub's layout: in a folder, in the Hub's caches, on the Hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

ENVIRONMENT: Final = "FUSION_BENCH_DATA"
_SHARD: Final = re.compile(r"-of-(\d{5})")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def split_files(folder: Path, config: str | None, split: str) -> tuple[Path, ...]:
    """The parquet files of one split of a data set that lies in `folder`; none where there is no whole set of shards.

    ``<split>-*.parquet`` in the folder of the config (or ``data/<config>``); without a config in the folder itself, in
    ``data``, in ``default``, else in the only sub-folder that has them.
    """
    if config is not None:
        places = [folder / config, folder / "data" / config]
    else:
        places = [folder, folder / "data", folder / "default"]
    for place in places:
        if found := shards(place, split):
            return found
    if config is None and folder.is_dir():
        others = [found for place in sorted(folder.iterdir()) if place.is_dir() and (found := shards(place, split))]
        if len(others) == 1:
            return others[0]
    return ()


def shards(folder: Path, split: str) -> tuple[Path, ...]:
    """``<split>-*.parquet`` (or ``<split>.parquet``) in `folder`, in order; none where a shard is missing."""
    found = sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"{split}.parquet"))
    announced = {int(match[1]) for file in found if (match := _SHARD.search(file.name))}
    return tuple(found) if all(len(found) == count for count in announced) else ()


def splits(folder: Path) -> tuple[str, ...]:
    """The splits of which parquet files lie anywhere below `folder`, sorted."""
    return tuple(sorted({file.name.split("-")[0].removesuffix(".parquet") for file in folder.rglob("*.parquet")}))


def hub_patterns(config: str | None, split: str) -> list[str]:
    """What has to be fetched of a data set so that `split_files` finds the split."""
    prefixes = [f"{config}/", f"data/{config}/"] if config is not None else ["", "*/"]
    return [f"{prefix}{split}{end}" for prefix in prefixes for end in ("-*.parquet", ".parquet")]


def in_hub_cache(repository: str, patterns: Sequence[str]) -> Path | None:
    """The snapshot of a data set in the Hub's cache; None where there is none. It may lack the files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(repository, repo_type="dataset", allow_patterns=list(patterns), local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def on_hub(repository: str, patterns: Sequence[str], tried: list[str]) -> Path | None:
    """The data set fetched from the Hub; None, with the reason in `tried`, where that is not possible."""
    from huggingface_hub import is_offline_mode, snapshot_download

    if is_offline_mode():
        tried.append("the Hub: offline (HF_HUB_OFFLINE)")
        return None
    try:
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=list(patterns)))
    except Exception as fault:  # network faults come as errors of several libraries
        reason = str(fault).strip().splitlines()
        tried.append(f"the Hub: {reason[0] if reason else type(fault).__name__}")
        return None


def hub_cache() -> str:
    """The folder of the Hub's cache."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def datasets_cache() -> Path:
    """The folder in which ``load_dataset`` keeps what it prepared."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    return Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()


def prepared(repository: str, config: str, split: str) -> tuple[Path, ...]:
    """What ``load_dataset`` left of a split, of the latest preparation: ``nyu-mll___glue/cola/0.0.0/<commit>/*.arrow``.

    `config` may be ``*`` for any.
    """
    name = repository.replace("/", "___")
    folders = {file.parent for file in datasets_cache().glob(f"{name}/{config}/*/*/*-{split}*.arrow")}
    for folder in sorted(folders, key=lambda place: place.stat().st_mtime, reverse=True):
        if found := sorted(folder.glob(f"*-{split}.arrow")) or sorted(folder.glob(f"*-{split}-[0-9]*.arrow")):
            return tuple(found)
    return ()


def file_digests(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file by its name.

    The Hub's cache names large files by it, so those are not read.
    """
    return {file.name: _digest(file) for file in files}


def _digest(file: Path) -> str:
    blob = file.resolve()
    if file.is_symlink() and _SHA256.fullmatch(blob.name):
        return blob.name
    facts = blob.stat()
    return _sha256(blob, facts.st_size, facts.st_mtime_ns)


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    """`size` and `changed` tell whether the file is still the one that was read."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
