"""Where the blocks of a page run: an empty folder with a pool, data and a Hub cache at hand."""

from __future__ import annotations

import shutil
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "src" / "fusion_bench" / "zoo" / "mini_t5_glue_lora16"


@pytest.fixture
def place(tmp_path: Path, hub: Path, glue: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages suppose a reader to have: a folder `data` with GLUE, a Hub cache."""
    from fusion_bench.zoo.text import tasks

    (tmp_path / "data").symlink_to(glue)
    monkeypatch.setenv("FUSION_BENCH_DATA", str(glue))
    monkeypatch.setattr(tasks, "load", _load)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pool_at_hand(place: Path) -> Path:
    """`my-pool`, in the README `POOL`: a base and eight adapters."""
    shutil.copytree(EMBEDDED, place / "my-pool")
    (place / "POOL").symlink_to(place / "my-pool")
    return place


def _original() -> object:
    from fusion_bench.zoo.text import tasks

    return tasks.load


_LOAD = _original()


@cache
def _load(task: str, split: str) -> object:
    # Pages evaluate some dozens of times; the examples of a split are always the same. Never those that are reported.
    assert split != "test", "tests do not look at the reported split"
    return _LOAD(task, split)  # type: ignore[operator]
