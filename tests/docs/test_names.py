"""No page names a configuration, a method or a key that does not exist; none is missing."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blocks import DOCS, Block, blocks, pages

import fusion_bench
from fusion_bench.cli.app import CONFIGS
from fusion_bench.cli.job import Job
from fusion_bench.method import method_class, method_modules
from fusion_bench.modelpool import pool_types
from fusion_bench.taskpool import TYPES

CHOICES = {
    "method": set(method_modules()),
    "modelpool": {file.stem for file in (CONFIGS / "modelpool").glob("*.yaml")},
    "taskpool": {file.stem for file in (CONFIGS / "taskpool").glob("*.yaml")},
}


def fields(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls) if field.init}


KEYS = {
    "method": {"name"} | {name for key in method_modules() for name in fields(method_class(key))},
    "modelpool": {"type"} | {name for cls in pool_types().values() for name in fields(cls)},
    "taskpool": {"type"} | {name for load in TYPES.values() for name in fields(load())},
}
TOP = fields(Job)
# Of the examples: a method and a pool that the reader writes.
OWN = {"median_merging", "mine", "METHOD", "POOL", "TASKS", "NAME"}

_WORD = re.compile(r"(?<![\w./{$])(?P<key>\+?[a-z_]+(?:\.[a-z_0-9]+)*)=(?P<value>[^\s'`|)]*)")


def words(page: str) -> Iterator[tuple[str, str, str]]:
    """Where, key and value of every ``key=value`` in commands and in inline code that looks like one."""
    for block in blocks(page):
        if block.language == "bash" and block.says("exit status") is None:
            yield from _words(str(block), _commands(block))
    prose = re.sub(r"^ *```.*?^ *```", "", pages()[page], flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", prose):
        if span.split("=")[0].split(".")[0].lstrip("+") in ("method", "modelpool", "taskpool", *TOP):
            yield from _words(f"{page}: {span}", span)


def _commands(block: Block) -> str:
    joined = block.code.replace("\\\n", " ")
    return "\n".join(line for line in joined.splitlines() if line.strip().startswith("fusion_bench"))


def _words(where: str, text: str) -> Iterator[tuple[str, str, str]]:
    for match in _WORD.finditer(text):
        yield where, match["key"].lstrip("+"), match["value"]


@pytest.mark.parametrize("page", sorted(pages()))
def test_words(page: str) -> None:
    for where, key, value in words(page):
        group, _, rest = key.partition(".")
        if group in ("hydra/launcher", "generalization") or key.startswith("hydra"):
            continue
        if rest:
            assert group in KEYS, f"{where}: {key}"
            assert rest.split(".")[0] in KEYS[group], f"{where}: {key}"
        else:
            assert key in TOP, f"{where}: {key}"
        if key in CHOICES:
            for choice in value.split(","):
                own = choice in OWN or "/" in choice or "$" in choice or choice in ("", "…")
                assert own or choice in CHOICES[key], f"{where}: {key}={choice}"


def test_keys_belong_to_the_method_of_their_command() -> None:
    for page in pages():
        for block in blocks(page):
            if block.language != "bash" or block.says("exit status") is not None or block.says("not run") is not None:
                continue
            for line in _commands(block).splitlines():
                found = {key: value for _, key, value in _words("", line)}
                chosen = [key for key in found.get("method", "simple_average").split(",") if key in method_modules()]
                for key in found:
                    if key.startswith("method.") and key != "method.name" and chosen:
                        own = key[7:].split(".")[0]
                        assert all(own in fields(method_class(name)) for name in chosen), f"{block}: {key}"


def test_every_configuration_and_key_is_described() -> None:
    text = pages()["docs/reference/configuration.md"]
    for name in TOP:
        assert f"| `{name}` |" in text
    for group in ("modelpool", "taskpool"):
        for name in CHOICES[group]:
            assert f"{group}={name}\n" in text
        for key in KEYS[group] - {"type"}:
            assert f"| `{group}.{key}` |" in text, key
    for key in method_modules():
        assert f"({key}.md)" in pages()["docs/methods/index.md"]


def test_every_public_name_is_described() -> None:
    text = pages()["docs/reference/python.md"]
    for name, home in fusion_bench._HOMES.items():
        assert f"`{name}`" in text
        assert f"::: {home}.{name}\n" in text + "\n", name
    for error in vars(fusion_bench.errors).values():
        if isinstance(error, type) and issubclass(error, fusion_bench.FusionError):
            assert f"::: {error.__module__}.{error.__name__}" in text


def test_every_key_of_the_report_is_described(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command(
        "method=task_arithmetic", "taskpool=mini-t5_glue_text_generation", "taskpool.split=validation",
        "taskpool.select=[rte,stsb]", "taskpool.limit=4", "taskpool.references=true", "threads=1", "digests=true",
        "save_report=report.json", "save_model=model",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    report = json.loads((tmp_path / "report.json").read_text())
    section = pages()["docs/how-to/evaluate.md"].partition("## The report")[2]
    described = set(re.findall(r"`(\w+)`", section))
    inputs = report["run"]["inputs"]["rte"]
    groups = (
        ("report", set(report) - {"rte", "stsb"}),
        ("task", {*report["rte"], *report["stsb"]}),
        ("run", set(report["run"])),
        ("inputs", set(inputs) | {"sha256"}),
        ("seconds", set(report["run"]["seconds"])),
        ("references", set(report["run"]["references"])),
        ("model_info", set(report["model_info"])),
        ("data", {*report["run"]["data"], *report["run"]["data"]["data"]["rte"], *report["run"]["data"]["generation"]}),
    )
    for group, keys in groups:
        assert keys <= described, f"{group}: {sorted(keys - described)} not described in how-to/evaluate.md"


def test_the_suite_page_shows_result_files(tmp_path: Path) -> None:
    sys.path.insert(0, str(DOCS))
    import generate  # type: ignore[import-not-found]

    assert "No result files" in generate.suite_page(tmp_path)
    row = {"rte": 0.5, "sst2": 0.25, "average": 0.375}
    result = {
        "base": row, "experts": {"rte": {**row, "rte": 1.0}, "sst2": row}, "simple_average": row,
        "task_arithmetic": {"0.3": row}, "ties_merging_0.3": row,
    }  # fmt: skip
    data = {"split": "validation", "n_per_task": 8, "seeds": {"0": result, "1": result}}
    (tmp_path / "results.json").write_text(json.dumps(data))
    page = generate.suite_page(tmp_path)
    assert "| base | 50.0 | 25.0 | 37.5 |" in page
    assert "| individual | 100.0 | 25.0 | 62.5 |" in page
    assert "| task_arithmetic λ=0.3 | 50.0 | 25.0 | 37.5 |" in page
    assert "| ties_merging λ=0.3 | 37.5 | 37.5 |" in page


def test_no_paths_of_one_machine() -> None:
    for page, text in pages().items():
        assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", text), page
