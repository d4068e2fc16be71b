"""The shipped pool: loads with transformers and peft, answers in the format, experts are specialists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusion_bench.taskpool.templates import template
from fusion_bench.zoo import MINI_T5, text
from fusion_bench.zoo.text import auxiliary, corpus, model, tokenizer, training
from fusion_bench.zoo.text.prompts import render

torch = pytest.importorskip("torch")
N = 160


@pytest.fixture(scope="module")
def words():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MINI_T5 / "base")


@pytest.fixture(scope="module")
def base():
    return model.load(MINI_T5 / "base")


def _expert(task: str):
    from peft import PeftModel

    return PeftModel.from_pretrained(model.load(MINI_T5 / "base"), MINI_T5 / task).eval()


def test_special_tokens(words) -> None:
    assert words.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert (words.pad_token_id, words.eos_token_id, words.unk_token_id) == (0, 1, 2)


def test_shipped_tokenizer_is_the_one_of_the_recipe(words) -> None:
    assert words.get_vocab() == tokenizer.build().get_vocab()


def test_every_target_round_trips(words) -> None:
    targets = [word for task in text.TASKS for word in template(task).targets or ()]
    targets += [f"{tenth / 10:.1f}" for tenth in range(51)]
    for target in targets:
        assert words.decode(words(target)["input_ids"], skip_special_tokens=True) == target


@pytest.mark.parametrize("task", text.TASKS)
def test_no_unknown_tokens(words, task: str) -> None:
    for split in text.SIZES:
        pairs = [render(task, row) for row in text.load(task, split)]
        for prompt, target in training.encode(pairs, words):
            assert 2 not in prompt
            assert 2 not in target


def test_corpus_of_the_base_has_no_unknown_tokens(words) -> None:
    pairs = list(corpus.pretraining(0, 2000))
    assert any(prompt.startswith(auxiliary.TEMPLATE[:10]) for prompt, _ in pairs)
    assert all(2 not in prompt + target for prompt, target in training.encode(pairs, words))


def test_corpus_never_shows_a_reported_text() -> None:
    reported = {
        render(task, row)[0]
        for task in text.TASKS
        for split in ("validation", "test")
        for row in text.load(task, split)
    }
    assert not reported & {prompt for prompt, _ in corpus.pretraining(0, 10_000)}


def test_pool_is_small_portable_and_half_precision() -> None:
    from safetensors.torch import load_file

    assert sum(path.stat().st_size for path in MINI_T5.rglob("*") if path.is_file()) < 3.5e6
    assert sorted(path.name for path in MINI_T5.iterdir() if path.is_dir()) == sorted(["base", *text.TASKS])
    for path in MINI_T5.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    for task in text.TASKS:
        settings = json.loads((MINI_T5 / task / "adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (16, 32, "SEQ_2_SEQ_LM")
        assert settings["base_model_name_or_path"] == "../base"


def test_head_is_untied_in_file_and_memory(base) -> None:
    assert json.loads((MINI_T5 / "base" / "config.json").read_text())["tie_word_embeddings"] is False
    assert not torch.equal(base.lm_head.weight, base.shared.weight)


@pytest.mark.parametrize("task", text.TASKS)
def test_expert_beats_base_on_its_task(task: str) -> None:
    from fusion_bench import open_modelpool, open_taskpool
    from fusion_bench.settings import Settings

    pool = open_modelpool({"type": "embedded", "select": [task]})
    spec = {"type": "glue_text_generation", "data": "mini_t5", "split": "validation", "limit": N, "select": [task]}
    measured = open_taskpool(spec)
    before, after = (
        measured.evaluate(model, settings=Settings(threads=1), tokenizers=[MINI_T5 / "base"])["average"]
        for model in (pool.base, pool.models[task])
    )
    assert after > max(before + 0.1, 0.85)


def test_recipe_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_bench.zoo.text import base_model, build, expert

    monkeypatch.setattr(base_model, "STEPS", 2)
    monkeypatch.setattr(base_model, "BATCH", 8)
    monkeypatch.setattr(expert, "STEPS", 2)
    lines: list[str] = []
    build.build(tmp_path, 3, log=lines.append)
    first = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert len(first) == 9
    (tmp_path / "rte" / "adapter_model.safetensors").unlink()
    (tmp_path / "rte" / "adapter_config.json").unlink()
    (tmp_path / "rte").rmdir()
    build.build(tmp_path, 3, log=lines.append)
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert first == again
