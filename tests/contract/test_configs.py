"""What holds of every shipped configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fusion_bench.cli.app import CONFIGS
from fusion_bench.modelpool import open_modelpool, pool_types
from fusion_bench.taskpool import TYPES, open_taskpool

POOLS = sorted((CONFIGS / "modelpool").glob("*.yaml"))
TASKS = sorted((CONFIGS / "taskpool").glob("*.yaml"))


def plain(file: Path) -> dict[str, object]:
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("file", POOLS, ids=lambda f: f.stem)
def test_modelpool(file: Path, pool: Path) -> None:
    values = plain(file)
    assert values["type"] in pool_types()
    assert file.read_text().startswith("#"), "the first line tells `list` what it is"
    # Every key can be overridden on the command line, so every field stands in the file.
    import dataclasses

    assert set(values) == {"type", *(f.name for f in dataclasses.fields(pool_types()[str(values["type"])]))}
    if values.get("path") == "???":
        values["path"] = str(pool)
    opened = open_modelpool(values)
    assert opened.models or opened.has_base


@pytest.mark.parametrize("file", TASKS, ids=lambda f: f.stem)
def test_taskpool(file: Path) -> None:
    import dataclasses

    values = plain(file)
    assert file.read_text().startswith("#"), "the first line tells `list` what it is"
    kind = TYPES[str(values["type"])]()
    # An embedded suite needs no folder of data; every other field can be overridden on the command line.
    fields = {f.name for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    assert fields - set(values) <= ({"data_dir"} if values.get("data") == "mini_t5" else set())
    assert set(values) <= fields
    assert open_taskpool(values).name == values["type"]
