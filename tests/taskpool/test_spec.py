"""Task pools out of configurations."""

from __future__ import annotations

from dataclasses import fields
from importlib import resources
from typing import Any

import pytest
import yaml

from fusion_bench.errors import ConfigError
from fusion_bench.taskpool import open_taskpool, templates
from fusion_bench.taskpool.text_generation import GlueTextGeneration


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "glue"}, "Did you mean 'glue_text_generation'"),
        ({"limt": 3}, "Did you mean 'taskpool.limit'"),
        ({"limit": 0}, "at least 1"),
        ({"select": ["colaa", "mnli"]}, "taskpool.select: unknown task 'colaa'. Did you mean 'cola'?"),
        ({"select": []}, "leaves no task"),
        ({"tasks": ["mnl"]}, "Did you mean 'mnli'"),
        ({"prompt_spelling": "answr"}, "Did you mean 'answer'"),
        ({"stsb_unparseable": "skip"}, "Accepted: whole, zero"),
        ({"max_length": 1}, "at least 2"),
        ({"cache": "yes"}, "true or false"),
    ],
)
def test_wrong_settings_name_the_right_ones(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_taskpool({"type": "glue_text_generation", **change})
    assert said in str(caught.value)


def test_type_is_required() -> None:
    with pytest.raises(ConfigError, match=r"taskpool\.type is missing"):
        open_taskpool({"limit": 3})


@pytest.mark.parametrize("name", ["flan-t5_glue_text_generation", "mini-t5_glue_text_generation", "dummy"])
def test_shipped_configurations(name: str) -> None:
    text = resources.files("fusion_bench.configs").joinpath("taskpool", f"{name}.yaml").read_text()
    spec = yaml.safe_load(text)
    made = open_taskpool(spec)
    if isinstance(made, GlueTextGeneration):
        assert made.tasks == templates.TASKS
        assert made.tokenizer is None
        # Every field is written out, so that an override of any of them is known to the command line.
        shown = {f.name for f in fields(made) if f.init} - ({"data_dir"} if made.data == "mini_t5" else set())
        assert spec.keys() == shown
