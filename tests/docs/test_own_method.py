"""The page on writing a method: its two files, put into a copy of the sources, are all that is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from blocks import ROOT, blocks

PAGE = "docs/learn/own-method.md"


def test_two_files(tmp_path: Path) -> None:
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=skip)
    for part in ("tests/conftest.py", "tests/contract/test_methods.py", "tests/contract/toy.py", "pyproject.toml"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    files = [block for block in blocks(PAGE) if block.says("file") is not None]
    assert len(files) == 2
    for block in files:
        place = tmp_path / str(block.says("file"))
        assert not place.exists()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(block.code)
    shells = [block for block in blocks(PAGE) if block.language == "bash" and block.says("not run") is None]
    shim = 'fusion_bench() { python -m fusion_bench "$@"; }\npytest() { python -m pytest -p no:cacheprovider "$@"; }\n'
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "src"),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    script = shim + "".join(block.code for block in shells)
    ran = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^\d\d passed", ran.stdout, re.MULTILINE), ran.stdout
    assert "method     median_merging scaling_factor=0.5" in ran.stdout
    assert str(ROOT / "src") not in ran.stdout
