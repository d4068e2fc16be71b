"""The shipped vision pool: loads with transformers, answers zero-shot, experts are specialists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fusion_bench.errors import DataError
from fusion_bench.zoo import vision
from fusion_bench.zoo.vision import corpus, model, tokenizer
from fusion_bench.zoo.vision.head import accuracy, head

torch = pytest.importorskip("torch")
POOL = Path(vision.__file__).parent.parent / "mini_clip_vision"
N = 300


@pytest.fixture(scope="module")
def words():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(POOL / "base")


@pytest.fixture(scope="module")
def base():
    return model.load(POOL / "base")


def _first(task: str, split: str, count: int) -> vision.ImageSet:
    images = vision.load(task, split)
    return vision.ImageSet(images.images[:count], images.labels[:count])


def test_pool_is_small_and_half_precision() -> None:
    from safetensors.torch import load_file

    assert sum(path.stat().st_size for path in POOL.rglob("*") if path.is_file()) < 6e6
    assert sorted(path.name for path in POOL.iterdir() if path.is_dir()) == sorted(["base", *vision.TASKS])
    for path in POOL.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


@pytest.mark.parametrize("task", vision.TASKS)
def test_experts_are_vision_towers_of_the_layout_of_transformers(base, task: str) -> None:
    from safetensors.torch import load_file

    settings = json.loads((POOL / task / "config.json").read_text())
    assert (settings["model_type"], settings["architectures"]) == ("clip_vision_model", ["CLIPVisionModel"])
    stored = load_file(POOL / task / "model.safetensors")
    tower = base.vision_model.state_dict()
    assert {name: value.shape for name, value in stored.items()} == {n: v.shape for n, v in tower.items()}
    assert {name.split(".")[0] for name in stored} == {"embeddings", "encoder", "pre_layrnorm", "post_layernorm"}
    # Every tensor was trained.
    assert all(not torch.equal(stored[name].float(), tower[name]) for name in stored)


def test_shipped_tokenizer_is_the_one_of_the_recipe(words) -> None:
    assert words.get_vocab() == tokenizer.build(corpus.captions()).get_vocab()
    assert (words.pad_token_id, words.unk_token_id, words.bos_token_id, words.eos_token_id) == (0, 1, 2, 3)


def test_no_unknown_words_and_no_prompt_is_cut(words) -> None:
    for prompts in corpus.captions().values():
        for texts in prompts:
            for tokens in words(texts)["input_ids"]:
                assert 1 not in tokens
                assert (tokens[0], tokens[-1]) == (2, 3)
                assert len(tokens) <= tokenizer.LENGTH


def test_image_processor_makes_what_the_recipe_trained_on() -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(POOL / "base")
    images = _first("signs", "validation", 4).images
    made = processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made, model.pixels(images))
    large = processor(images=[Image.fromarray(images[0]).resize((96, 64))], return_tensors="pt")["pixel_values"]
    assert large.shape == (1, 3, 32, 32)


def test_head_is_the_formula_told_with_the_whole_model(words, base) -> None:
    """Our head and features against the logits that CLIPModel computes itself, one template at a time."""
    task = "terrain"
    images = model.pixels(_first(task, "validation", 8).images)
    directions = []
    with torch.no_grad():
        for template in vision.templates(task):
            tokens = words(
                [template.replace("{c}", c) for c in vision.classes(task)], padding=True, return_tensors="pt"
            )
            directions.append(base(pixel_values=images, **tokens).text_embeds)
            seen = base(pixel_values=images, **tokens).image_embeds
    mean = torch.stack(directions).mean(dim=0)
    expected = torch.exp(base.logit_scale.detach()) * mean / mean.norm(dim=-1, keepdim=True)
    found = head(base, words, vision.classes(task), vision.templates(task))
    torch.testing.assert_close(seen @ found.T, seen @ expected.T)


@pytest.mark.parametrize("task", vision.TASKS)
def test_expert_beats_base_on_its_task(words, base, task: str) -> None:
    images = _first(task, "validation", N)
    directions = head(base, words, vision.classes(task), vision.templates(task))
    before = accuracy(base, base.vision_model, directions, images)
    after = accuracy(base, model.load_tower(POOL / task), directions, images)
    # Three standard errors of a difference are less than 0.12 at this number.
    assert after > max(before + 0.12, 0.8)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch):
    """The recipe with two steps each on few images."""
    from fusion_bench.zoo.vision import base_model, expert, tasks

    monkeypatch.setattr(base_model, "STEPS", 2)
    monkeypatch.setattr(base_model, "BATCH", 4)
    monkeypatch.setattr(base_model, "_SAMPLE", 2)
    monkeypatch.setattr(expert, "STEPS", 2)
    monkeypatch.setattr(expert, "BATCH", 4)
    monkeypatch.setitem(tasks.SIZES, "train", 16)
    monkeypatch.setitem(tasks.SIZES, "validation", 8)
    tasks._loaded.cache_clear()
    yield
    tasks._loaded.cache_clear()


def test_recipe_trains_and_resumes(tmp_path: Path, brief: None) -> None:
    import shutil

    from fusion_bench.zoo.vision import build

    lines: list[str] = []
    build.build(tmp_path, 3, log=lines.append)
    first = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert len(first) == 9
    assert lines[-1].startswith(f"{vision.TASKS[-1]} is there, 8 of 8 experts")
    shutil.rmtree(tmp_path / "signs")
    build.build(tmp_path, 3, log=lines.append)
    again = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert first == again
    build.build(tmp_path / "other", 4, log=lines.append)
    assert (tmp_path / "other" / "base" / "model.safetensors").read_bytes() != first[Path("base/model.safetensors")]


def test_recipe_of_real_data(tmp_path: Path, brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_bench.zoo.vision import build, real, suite

    monkeypatch.setattr(real, "VALIDATION", 10)
    monkeypatch.setattr(suite, "GLIMPSE", 8)
    with pytest.raises(DataError, match="lacks mnist/default/train-"):
        build.build(tmp_path / "out", data=tmp_path / "data")
    _write_data(tmp_path / "data")
    splits = [real.load(tmp_path / "data", "usps", split) for split in ("train", "validation", "test")]
    assert [len(images) for images in splits] == [30, 10, 40]
    assert splits[0].images.shape == (30, 32, 32, 3)
    build.build(tmp_path / "out", 0, data=tmp_path / "data", log=lambda line: None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["base", *real.TASKS])


def _write_data(root: Path) -> None:
    """Forty images a split, whose brightness names the class, in the layout of the Hub."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from fusion_bench.zoo.vision import real

    for task in real.TASKS:
        (root / task / "default").mkdir(parents=True)
        for offset, split in enumerate(("train", "test")):
            rows = []
            for number in range(40):
                data = io.BytesIO()
                grey = np.full((28, 28), number % 10 * 20 + 2 * offset + number // 20, dtype=np.uint8)
                Image.fromarray(grey).save(data, format="PNG")
                rows.append({"image": {"bytes": data.getvalue(), "path": None}, "label": number % 10})
            pq.write_table(pa.Table.from_pylist(rows), root / task / "default" / f"{split}-00000-of-00001.parquet")
