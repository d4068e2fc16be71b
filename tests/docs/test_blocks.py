"""Every shell and Python block of README and documentation runs, page by page, in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blocks import Block, blocks, pages

# Run in another way: see test_own_method.py.
ELSEWHERE = {"docs/learn/own-method.md"}
RUN = ("bash", "python")
# What a runnable block may say of itself, and what only other blocks may.
COMMENTS = {"bash": ("not run", "exit status"), "python": ("not run", "file"), "text": ("output",), "yaml": ("file",)}

# bash runs the block with this in place of the command: every call is noted with its environment.
SHIM = r"""
fusion_bench() { printf '%s\0' "${FUSION_BENCH_DATA-}" "$#" "$@" >> "$CALLS"; }
"""


def shell(block: Block, place: Path) -> list[tuple[str, list[str]]]:
    """Runs a block in bash; the value of FUSION_BENCH_DATA and the arguments of each call of `fusion_bench`."""
    calls = place.parent / f"{place.name}.calls"
    calls.write_text("")
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(place), "CALLS": str(calls)}
    environment["FUSION_BENCH_DATA"] = os.environ["FUSION_BENCH_DATA"]
    subprocess.run(["bash", "-euc", SHIM + block.code], check=True, env=environment, cwd=place)
    words = calls.read_text().split("\0")[:-1]
    found = []
    while words:
        data, count = words[0], int(words[1])
        found.append((data, words[2 : 2 + count]))
        words = words[2 + count :]
    return found


def quick(arguments: list[str]) -> list[str]:
    """The same command over fewer examples, on one thread, never on the reported split of the miniature suite."""
    pools = [word.partition("=")[2] for word in arguments if word.startswith("taskpool=")]
    if not pools or pools[-1] == "dummy":
        return arguments
    kept = [word for word in arguments if not word.startswith("taskpool.limit=")]
    if pools[-1].startswith("mini-") and not any(word.startswith("taskpool.split=") for word in arguments):
        kept.append("taskpool.split=validation")
    if pools[-1].startswith("flan-t5"):
        kept.append("taskpool.select=[rte,stsb]")  # all eight: tests/cli/test_page.py
    return [*kept, "taskpool.limit=2", "threads=1"]


def matches(expected: str, printed: str) -> bool:
    """Whether each line of `expected` is a line of `printed`; … stands for anything, runs of blanks are one."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for line in expected.splitlines():
        pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("…"))
        if not any(re.fullmatch(pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".*"), given) for given in lines):
            return False
    return True


class Page:
    """Runs the blocks of one page: one folder, one Python namespace."""

    def __init__(self, place: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.command, self.monkeypatch = place, command, monkeypatch
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""

    def run(self, block: Block) -> None:
        if block.says("not run") is not None:
            return
        file = block.says("file")
        if file is not None:
            (self.place / file).parent.mkdir(parents=True, exist_ok=True)
            (self.place / file).write_text(block.code)
        elif block.language == "bash":
            self._bash(block)
        elif block.language == "python":
            exec(compile(block.code, str(block), "exec"), self.namespace)
        elif block.says("output") is not None:
            assert matches(block.code, self.printed), f"{block}: printed was\n{self.printed}"

    def _bash(self, block: Block) -> None:
        expected = int(block.says("exit status") or 0)
        self.printed = ""
        for data, arguments in shell(block, self.place):
            with self.monkeypatch.context() as patch:
                patch.setenv("FUSION_BENCH_DATA", data)
                ran = self.command(*quick(arguments))
            assert ran.status == expected, f"{block}: {arguments}\n{ran.err}"
            assert "failed" not in ran.out, f"{block}: a task failed\n{ran.out}"
            self.printed += ran.out + ran.err


@pytest.mark.parametrize("page", sorted(set(pages()) - ELSEWHERE))
def test_page(
    page: str, command: Callable[..., Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(block.language in RUN for block in blocks(page)):
        return
    place = request.getfixturevalue("place" if "/learn/" in page else "pool_at_hand")
    runner = Page(place, command, monkeypatch)
    for block in blocks(page):
        runner.run(block)


@pytest.mark.parametrize("page", sorted(pages()))
def test_comments(page: str) -> None:
    """A block that is not run says why; no comment is misspelt; no block hides in a language that nobody runs."""
    for block in blocks(page):
        assert block.language in (*RUN, "text", "yaml", "json"), f"{block}: {block.language or 'no language'}"
        if block.comment is None:
            continue
        known = COMMENTS.get(block.language, ())
        word = next((word for word in known if block.says(word) is not None), None)
        assert word, f"{block}: <!-- {block.comment} --> is none of {known}"
        if word == "not run":
            assert len(block.says("not run") or "") >= 10, f"{block}: the reason is missing"


def test_every_fence_is_found() -> None:
    for page, text in pages().items():
        assert len(re.findall(r"^ *```\w", text, re.MULTILINE)) == len(blocks(page)), page
