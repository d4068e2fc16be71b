"""Tiny Llama checkpoints, and a function that merges them as a configuration says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from tiny_llama import CONSTANTS, llama  # noqa: E402


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models whose entries are all 0 (a), 1 (b), 2 (c), 4 (d); 4 layers each; one of 6 (deep, all 3)."""
    for name, value in CONSTANTS.items():
        llama(tmp_path / name, value, layers=6 if name == "deep" else 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def merged(place: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Runs a configuration; the tensors of the result, read back."""

    def run(text: str, *arguments: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        from fusion_bench.cli.mergekit import run_mergekit

        (place / "c.yml").write_text(text)
        assert run_mergekit(["c.yml", "out", "overwrite=true", "progress=false", *arguments]) == 0
        return dict(load_file(place / "out" / "model.safetensors"))

    return run
