"""Which tokenizer is taken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fusion_bench.errors import ConfigError
from fusion_bench.taskpool import tokenizer


def test_the_first_candidate_that_has_one(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer.find(None, [tmp_path, tokenizer_folder, "x/y"]).folder == tokenizer_folder
    assert tokenizer.find(str(tokenizer_folder), [tmp_path]).folder == tokenizer_folder


def test_what_is_asked_for_is_not_replaced(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"taskpool\.tokenizer") as caught:
        tokenizer.find(str(tmp_path), [tokenizer_folder])
    assert "a folder without tokenizer files" in str(caught.value)
    assert str(tokenizer_folder) not in str(caught.value)


def test_every_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        tokenizer.find(None, [tmp_path, tmp_path / "gone", "./gone", "google/flan-t5-base"])
    said = str(caught.value)
    for part in (
        f"{tmp_path}: a folder without",
        "gone: no such folder",
        "./gone: no such",
        "hf download google/flan-t5-base",
    ):
        assert part in said
    with pytest.raises(ConfigError, match="No model of the pool has a folder"):
        tokenizer.find(None, [])


def test_hub_cache(tokenizer_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--google--flan-t5-base"
    commit = "0" * 40
    shutil.copytree(tokenizer_folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    found = tokenizer.find(None, ["google/flan-t5-base"])
    assert found.folder == place / "snapshots" / commit
    assert found.load()("ab")["input_ids"][-1] == 1
    assert found.digest() == tokenizer.TokenizerSource("x", tokenizer_folder).digest()


def test_the_digest_is_of_the_content(tokenizer_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tokenizer_folder, copy)
    source = tokenizer.TokenizerSource("x", copy)
    before = source.digest()
    (copy / "README.md").write_text("no part of it")
    assert source.digest() == before
    (copy / "special_tokens_map.json").write_text("{}")
    assert source.digest() != before


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        tokenizer.find(str(tmp_path), []).load()
