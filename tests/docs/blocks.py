"""The code blocks of the documentation with what the comments above them say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<comment>(?:(?!-->).)*?) -->\n *)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """`comment`: of the HTML comment directly above; None where there is none."""

    page: str
    line: int
    language: str
    comment: str | None
    code: str

    def says(self, word: str) -> str | None:
        """What follows `word` and a colon (or a blank) in the comment; None where it does not begin with it."""
        if self.comment is None or not self.comment.startswith(word):
            return None
        return self.comment[len(word) :].lstrip(":").strip()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def pages() -> dict[str, str]:
    """Every page, the generated ones included, by its place in the repository."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    import generate  # type: ignore[import-not-found]

    written = {file.relative_to(ROOT).as_posix(): file for file in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}
    texts = {name: file.read_text(encoding="utf-8") for name, file in written.items()}
    return texts | {f"docs/{name}": text for name, text in generate.pages().items()}


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order."""
    return list(_found(page, pages()[page]))


def _found(page: str, text: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        yield Block(page, line, match["language"], match["comment"], match["code"])
