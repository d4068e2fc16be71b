"""The site builds without a warning and without anything from elsewhere."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest
from blocks import DOCS, ROOT

mkdocs = pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
pytest.importorskip("mkdocstrings_handlers.python", reason="the extra `docs` is not installed")
pytest.importorskip("material", reason="the extra `docs` is not installed")


def test_strict_build(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    with caplog.at_level(logging.WARNING):
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))
    assert [r.getMessage() for r in caplog.records if r.name.startswith("mkdocs")] == []
    page = (tmp_path / "site/methods/ties_merging/index.html").read_text()
    assert "method.merge_func" in page
    for file in (tmp_path / "site").rglob("*.html"):
        text = file.read_text()
        # Formulas in prose are set; only code keeps its dollars.
        assert not re.search(r"\$\\", re.sub(r"<(pre|code).*?</\1>", "", text, flags=re.DOTALL)), file
        assert not re.search(r'<(?:script|link)[^>]+(?:src|href)="(?:https?:)?//[^"]*"[^>]*stylesheet', text), file
        assert not re.search(r'<script[^>]+src="(?:https?:)?//', text), file
    assert not list((tmp_path / "site").rglob("*.py"))


def test_formulas_without_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(DOCS))
    import hooks  # type: ignore[import-not-found]

    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    assert hooks.formula(r"\theta < 1") == r"<code>\theta &lt; 1</code>"
