"""What mkdocs is told beside mkdocs.yml: generated pages, their navigation, formulas as MathML without scripts."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).resolve().parent))
import generate

_FORMULA = r"(?<![\\$\w])\$(?=[^\s$])([^$]+?)(?<=[^\s$])\$(?![\w$])"


class Formula(InlineProcessor):
    """``$\\lambda$`` as MathML, which browsers show without a script."""

    def handleMatch(self, match: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]  # noqa: N802
        return self.md.htmlStash.store(formula(match[1])), match.start(0), match.end(0)


def formula(source: str) -> str:
    """LaTeX as MathML; as code where latex2mathml (in the extra `docs`) is not installed."""
    try:
        from latex2mathml.converter import convert
    except ImportError:
        return f"<code>{html.escape(source)}</code>"
    return convert(source)


class Formulas(Extension):
    """Puts `Formula` behind code and before escapes, so that backslashes arrive."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.inlinePatterns.register(Formula(_FORMULA, md), "formula", 185)


def on_config(config: Any) -> Any:
    """Adds formulas, and the pages of the methods to the navigation."""
    config.markdown_extensions.append(Formulas())
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"][1:] = [
                name for name in generate.pages() if name.startswith("methods/") and not name.endswith("index.md")
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages."""
    for name, text in generate.pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_content(text: str, **_: Any) -> str:
    """Docstrings refer to code in the roles of Sphinx, which would show as they stand."""
    return re.sub(r":(?:class|func|meth|mod):<code>~?([^<]*)</code>", r"<code>\1</code>", text)
