"""Mistakes in a configuration: each named, with the right word or the way out, before anything is opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fusion_bench.errors import ConfigError
from fusion_bench.mergekit.document import Model
from fusion_bench.mergekit.schema import read

LINEAR = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n"
SLICES = (
    "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 2]}]\n"
    "  - sources: [{model: b, layer_range: [1, 4]}]\n"
)
TIES = "merge_method: ties\nbase_model: z\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", ["not readable as YAML"]),
        ("- a\n", ["holds a list"]),
        ("", ["holds 0 documents"]),
        (LINEAR + "---\n" + LINEAR, ["holds 2 documents"]),
        ("models: [{model: a}]", ["merge_method is missing", "slerp"]),
        (LINEAR.replace("linear", "linnear"), ["unknown merge_method 'linnear'. Did you mean 'linear'?"]),
        (LINEAR.replace("linear", "arcee_fusion"), ["arcee_fusion is not supported. Take nearswap"]),
        (LINEAR.replace("linear", "ramplus_tl"), ["ramplus_tl is not supported. Take ram"]),
        (LINEAR + "dtpye: float32", ["unknown key 'dtpye'. Did you mean 'dtype'?"]),
        (LINEAR + "dtype: float23", ["dtype: unknown dtype 'float23'. Did you mean 'float32'?"]),
        (LINEAR + "out_dtype: int8", ["out_dtype: unknown dtype 'int8'"]),
        (LINEAR + "modules: {encoder: {}}", ["modules: merging the stacks"]),
        (LINEAR + "chat_template: chatml", ["chat_template: is not supported"]),
        (LINEAR + "tokenizer_source: union", ["tokenizer_source=union: adding up vocabularies is not supported"]),
        (LINEAR + "tokenizer: {source: base, tokens: {x: {}}}", ["tokenizer.tokens: giving tokens"]),
        (LINEAR + "tokenizer: {source: base, pad_to_multiple_of: 8}", ["tokenizer.pad_to_multiple_of: padding"]),
        (LINEAR + "tokenizer: {sauce: base}", ["unknown key 'tokenizer.sauce'. Did you mean 'tokenizer.source'?"]),
        (LINEAR + "tokenizer: {source: a}\ntokenizer_source: a", ["exclude each other"]),
        (LINEAR + "slices: []", ["models and slices exclude each other"]),
        ("merge_method: linear", ["models (or slices) is missing"]),
        ("merge_method: linear\nmodels: []", ["models: expected a list with at least one entry"]),
        ("merge_method: linear\nmodels: [a]", ["models[0]: expected a mapping with model, given a"]),
        ("merge_method: linear\nmodels: [{modle: a}]", ["models[0]: expected a mapping with model"]),
        (LINEAR + "  - model: a+lora", ["models[1].model=a+lora: a model plus an adapter is not supported"]),
        (LINEAR + "  - model: {model: {path: a}, lora: x}", ["models[1].model.lora: a model plus an adapter"]),
        (LINEAR + "  - model: {model: {pat: a}}", ["unknown key 'models[1].model.pat'"]),
        (LINEAR + "  - {model: b, layer_range: [0, 1]}", ["unknown key 'models[1].layer_range'"]),
        (LINEAR + "  - model: a", ["models[1].model=a: stands there already"]),
        (LINEAR + "  - model: ./a/../a", []),
        (LINEAR + "parameters: {wieght: 3}", ["unknown parameter of linear 'wieght'. Did you mean 'weight'?"]),
        (LINEAR + "parameters: {density: 3}", ["unknown parameter of linear 'density'"]),
        (LINEAR.replace("weight: 1", "normalize: false"), ["models[0].parameters.normalize: all inputs share it"]),
        (LINEAR.replace("weight: 1", "weight: half"), ["models[0].parameters.weight=half"]),
        (LINEAR.replace("{weight: 1}", "3"), ["models[0].parameters: expected a mapping"]),
        (TIES.replace("base_model: z\n", ""), ["ties works relative to a base. Add base_model"]),
        (
            "merge_method: slerp\nbase_model: z\nmodels: [{model: a}, {model: b}]",
            ["slerp takes 1 model beside the base"],
        ),
        ("merge_method: passthrough\nmodels: [{model: a}, {model: b}]", ["passthrough takes 1 model, given 2"]),
        ("merge_method: passthrough\nbase_model: z\nmodels: [{model: a}]", ["given 2 with base_model, which is"]),
        ("merge_method: model_stock\nbase_model: z\nmodels: [{model: a}]", ["model_stock takes at least 2 models"]),
        ("merge_method: nuslerp\nmodels: [{model: a}]", ["nuslerp takes 2 models, given 1"]),
        (SLICES.replace("[0, 2]", "[2, 2]"), ["slices[0].sources[0].layer_range=[2, 2]: expected"]),
        (SLICES.replace("[0, 2]", "[-1, 2]"), ["slices[0].sources[0].layer_range=[-1, 2]: expected"]),
        (SLICES.replace("[0, 2]", "0-2"), ["slices[0].sources[0].layer_range=0-2: expected"]),
        (SLICES.replace(", layer_range: [0, 2]", ""), ["slices[0].sources[0].layer_range=null: expected"]),
        (SLICES + "    base_model: z", ["slices[1].base_model: a base of a slice's own"]),
        (SLICES + "    source: z", ["unknown key 'slices[1].source'. Did you mean 'slices[1].sources'?"]),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2]}, "
            "{model: b, layer_range: [0, 3]}]}]",
            ["slices[0]: sources with different numbers of layers: 2, 3"],
        ),
        (SLICES.replace("passthrough", "ties\nbase_model: a"), ["slices[1]: ties needs the base a among its sources"]),
        # All faults at once.
        ("merge_method: linear\nfoo: 1\nmodels: [{model: a, bar: 2}]\nparameters: {baz: 3}", ["foo", "bar", "baz"]),
    ],
)
def test_mistakes(text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not words:
        assert read(text, "c.yml").models
        return
    with pytest.raises(ConfigError) as caught:
        read(text, "c.yml")
    for word in words:
        assert word in str(caught.value), caught.value
    assert all(line.startswith("c.yml: ") for line in str(caught.value).splitlines())


def test_one_place_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    assert Model("b") == Model("./b") == Model(str(tmp_path / "b")) != Model("c")
    with pytest.raises(ConfigError, match="stands there already"):
        read("merge_method: linear\nmodels: [{model: b}, {model: ./b}]\nparameters: {weight: 1}", "c.yml")


def test_json_and_what_has_no_effect() -> None:
    document = read('{"merge_method": "task_arithmetic", "base_model": "z", "models": [{"model": "z", "parameters": '
                    '{"weight": 5}}, {"model": "a"}], "name": "x", "dtype": null, '
                    '"parameters": {"weight": 1, "density": 0.5, "int8_mask": true}}', "c.yml")  # fmt: skip
    assert document.unused == (
        "parameters.density: task_arithmetic does not look at it",
        "models[0].parameters.weight: the base takes none",
    )


def test_labels() -> None:
    text = "merge_method: linear\nmodels: [{model: x/b}, {model: y/b}, {model: {model: {path: c, revision: v1}}}]"
    document = read(text + "\nparameters: {weight: 1}", "c.yml")
    assert list(document.labels().values()) == ["b", "b#2", "c"]
    assert [str(model) for model in document.models] == ["x/b", "y/b", "c@v1"]
    assert str(document.donor) == "x/b"


def test_mistakes_import_no_torch(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(TIES.replace("weight: 1", "wieght: 1"))
    code = (
        "import sys; from fusion_bench.cli import main\n"
        "assert main(['mergekit', '--help']) == 0\n"
        "assert main(['mergekit', 'c.yml', 'out']) == 2\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "Did you mean 'weight'?" in ran.stderr
    assert "merge_method: breadcrumbs" in ran.stdout
