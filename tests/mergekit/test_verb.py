"""`fusion_bench mergekit` on the command line: outputs, repetition, tokenizers, mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

YAML = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
DONE = "out: complete, written by this command before; nothing to do"
WORDS = [f"w{i}" for i in range(29)]


@pytest.fixture
def config(place: Path) -> Callable[[str], None]:
    def write(text: str) -> None:
        (place / "c.yml").write_text(text)

    return write


def test_the_same_command_again(command: Callable[..., Any], config: Callable[[str], None], place: Path) -> None:
    config(YAML)
    first = command("mergekit", "c.yml", "out")
    assert first.status == 0, first.err
    assert "saved out" in first.err
    assert "config and tokenizer are those of a, the first model listed" in first.err
    assert (place / "out" / "mergekit_config.yml").read_text() == YAML
    manifest = (place / "out" / "fusion_bench.json").read_text()
    card = (place / "out" / "README.md").read_text()
    assert "linear of a, b" in card
    assert str(place) not in manifest + card, "outputs are published: no paths of this machine"
    for more in ([], ["threads=2"], ["progress=false"], ["overwrite=true"]):
        again = command("mergekit", "c.yml", "out", *more)
        assert again.status == 0
        assert DONE in again.err
    assert command("verify", "out").status == 0
    for change in (["seed=7"], ["shard_size=10KB"]):
        refused = command("mergekit", "c.yml", "out", *change)
        assert refused.status == 2
        assert "holds the output of another command (method=mergekit linear" in refused.err
    config(YAML.replace("weight: 1", "weight: 2"))
    assert command("mergekit", "c.yml", "out").status == 2
    assert command("mergekit", "c.yml", "out", "overwrite=true").status == 0


def test_dry_run(command: Callable[..., Any], config: Callable[[str], None], place: Path) -> None:
    config(YAML.replace("weight: 1", "weight: [1, 2]"))
    ran = command("mergekit", "c.yml", "out", "dry_run=true")
    assert ran.status == 0, ran.err
    assert "linear: weighted_average; 4 settings" in ran.out
    assert "nothing was computed or written" in ran.out
    assert not (place / "out").exists()


def test_shards_and_memory(command: Callable[..., Any], config: Callable[[str], None], place: Path) -> None:
    config(YAML)
    assert command("mergekit", "c.yml", "out", "shard_size=20KB").status == 0
    assert (place / "out" / "model.safetensors.index.json").is_file()
    refused = command("mergekit", "c.yml", "other", "memory_budget=1MB")
    assert refused.status == 2
    assert "memory_budget=1 MB" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "CONFIG.yml and OUT are both needed"),
        (["c.yml"], "CONFIG.yml and OUT are both needed"),
        (["c.yml", "out", "more"], "what is 'more'"),
        (["nothing.yml", "out"], "nothing.yml: cannot be read: No such file"),
        (["c.yml", "out", "sed=1"], "unknown key 'sed'. Did you mean 'seed'?"),
        (["c.yml", "out", "seed=x"], "seed=x: expected an integer"),
        (["c.yml", "out", "memory_budget=much"], "memory_budget=much: expected a size"),
        (["c.yml", "out", "--cuda"], "unknown option '--cuda'"),
        (["c.yml", "a/out"], "OUT=a/out: inside"),
        (["c.yml", "full"], "full: holds other files"),
    ],
)
def test_mistakes(
    command: Callable[..., Any], config: Callable[[str], None], place: Path, arguments: list[str], words: str
) -> None:
    config(YAML)
    (place / "full").mkdir()
    (place / "full" / "mine.txt").write_text("x")
    ran = command("mergekit", *arguments)
    assert ran.status == 2
    assert words in ran.err
    assert ran.err.startswith("error: ")


def test_tokenizer_of_the_base(command: Callable[..., Any], config: Callable[[str], None], place: Path) -> None:
    from tiny_llama import llama

    for name, words in (("p", WORDS), ("q", WORDS), ("turned", WORDS[::-1]), ("short", WORDS[:-1])):
        llama(place / name, 1.0, words=words)
        (place / name / "chat_template.jinja").write_text(name)
    text = "merge_method: linear\nmodels: [{model: p}, {model: %s}]\nparameters: {weight: 1}\n"
    config(text % "q" + "tokenizer_source: q\n")
    assert command("mergekit", "c.yml", "one").status == 0
    assert (place / "one" / "chat_template.jinja").read_text() == "q"
    config(text % "q" + "base_model: q\ntokenizer_source: base\n")
    assert command("mergekit", "c.yml", "two").status == 0
    assert (place / "two" / "tokenizer.json").is_file()
    config(text % "turned")
    assert command("mergekit", "c.yml", "three").status == 0, "rows are merged by position"
    for other, words in (
        ("turned", "turned: 28 tokens differ"),
        ("short", "short: 1 tokens differ"),
        ("a", "a has no tokenizer.json"),
    ):
        config(text % other + "tokenizer_source: base\n")
        ran = command("mergekit", "c.yml", "four")
        assert ran.status == 2
        assert words in ran.err
    llama(place / "wide", 1.0, words=WORDS[:-2])
    config("merge_method: passthrough\nmodels: [{model: wide}]\ntokenizer_source: wide\n")
    assert "32 rows of embeddings for 30 tokens" in command("mergekit", "c.yml", "four").err


def test_what_has_no_effect_is_said(command: Callable[..., Any], config: Callable[[str], None]) -> None:
    config(
        "merge_method: task_arithmetic\nbase_model: a\nmodels: [{model: a, parameters: {weight: 3}}, {model: b}]\n"
        "parameters: {weight: 1, density: 0.5}\n"
    )
    ran = command("mergekit", "c.yml", "out")
    assert "parameters.density: task_arithmetic does not look at it, so it has no effect" in ran.err
    assert "models[0].parameters.weight: the base takes none, so it has no effect" in ran.err
    assert "config and tokenizer" not in ran.err


def test_cut_short_and_continued(
    command: Callable[..., Any], config: Callable[[str], None], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion_bench.checkpoint import stream
    from fusion_bench.checkpoint.contents import PARTIAL
    from fusion_bench.method import units
    from fusion_bench.method.engine import MergedCheckpoint

    for module in (stream, units):
        monkeypatch.setattr(module, "SMALL", 100)  # so that tiny tensors are written one by one
    config(
        "merge_method: passthrough\nslices:\n  - sources: [{model: c, layer_range: [0, 4]}]\n"
        "  - sources: [{model: d, layer_range: [0, 4]}]\n"
    )
    whole = command("mergekit", "c.yml", "whole", "threads=1")
    assert whole.status == 0
    read, calls = MergedCheckpoint.read_into, []

    def stops(self: Any, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) > 20:
            raise KeyboardInterrupt
        read(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MergedCheckpoint, "read_into", stops)
        assert command("mergekit", "c.yml", "out", "threads=1").status == 130
    assert (place / "out" / PARTIAL).exists()
    assert command("mergekit", "c.yml", "out", "threads=1").status == 0
    assert (place / "out" / "model.safetensors").read_bytes() == (place / "whole" / "model.safetensors").read_bytes()


def test_adapter_as_model(command: Callable[..., Any], config: Callable[[str], None], place: Path) -> None:
    """In the place of ``model+lora``: the adapter's folder."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = place / "lora"
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(1, 16), f"{name}.lora_B.weight": torch.ones(16, 1)},
        folder / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(place / "b")}))
    config("merge_method: linear\nmodels: [{model: lora}, {model: c}]\nparameters: {weight: 1}\n")
    ran = command("mergekit", "c.yml", "out")
    assert ran.status == 0, ran.err
    found = load_file(place / "out" / "model.safetensors")
    assert float(found["model.layers.0.self_attn.q_proj.weight"].mean()) == 2.5
    assert float(found["model.layers.1.self_attn.q_proj.weight"].mean()) == 1.5
