"""Evaluations of a tiny CLIP from image files to report, against plain transformers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPImageProcessorPil

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.errors import CheckpointError, ConfigError, DataError
from fusion_bench.family.clip_vision import vision_part
from fusion_bench.settings import Settings
from fusion_bench.taskpool import open_taskpool
from fusion_bench.taskpool.image_classification import ImageClassification

ONE = Settings(device="cpu", threads=1)
TEMPLATES = ("a photo of a {c}.", "my {c}!")
Open = Callable[..., ImageClassification]
Read = Callable[[Path], list[int]]
Plain = Callable[..., list[int]]


def test_predictions_are_those_of_transformers(
    images: Open, tower: Checkpoint, clip: Path, folder: Path, tmp_path: Path, outputs: Read, plain_predictions: Plain
) -> None:
    one = {name: {"templates": ["a photo of a {c}."]} for name in ("colours", "forms")}
    seen = set()
    for tasks, template in (({}, None), ({"tasks": one}, "a photo of a {c}.")):
        report = images(**tasks).evaluate(tower, settings=ONE, predictions=tmp_path)
        for task in ("colours", "forms"):
            expected = plain_predictions(clip, folder / task / "default" / "test-00000-of-00001.parquet", template)
            assert outputs(tmp_path / f"{task}.jsonl") == expected
            right = sum(found == place % 4 for place, found in enumerate(expected))
            assert report[task]["accuracy"] == right / 20
            seen |= set(expected)
        assert report["average"] == pytest.approx((report["colours"]["accuracy"] + report["forms"]["accuracy"]) / 2)
    assert len(seen) > 1  # a head that always says the same would pass


def test_shape_of_the_report(
    images: Open, tower: Checkpoint, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = images(clip=None, limit=15)
    made.check([tmp_path, clip])
    made.check_model(tower.config)
    report = made.evaluate(tower, settings=ONE, tokenizers=[tmp_path, clip], predictions=tmp_path / "p")
    assert list(report) == ["colours", "forms", "average"]
    keys = {"accuracy", "n", "stderr", "majority", "most_common_share", "collapsed", "seconds", "cached"}
    assert all(report[task].keys() == keys and report[task]["n"] == 15 for task in ("colours", "forms"))
    accuracy = report["forms"]["accuracy"]
    assert report["forms"]["stderr"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 15))
    lines = [json.loads(line) for line in (tmp_path / "p" / "forms.jsonl").read_text().splitlines()]
    assert all(line["target"] == line["id"] % 4 for line in lines)
    assert len({line["id"] for line in lines}) == 15
    facts = json.loads(json.dumps(made.describe(), allow_nan=False))
    assert facts["data"]["forms"]["classes"] == 4
    assert facts["templates"]["forms"] == list(TEMPLATES)
    assert facts["clip"] == clip.name
    assert len(facts["text_tower"]) == 65
    assert len(facts["image_processor"]) == 32
    assert facts["corruption"] is None
    assert capfd.readouterr().err == ""
    assert made.metrics == {"colours": "accuracy", "forms": "accuracy"}


@pytest.mark.parametrize("size", [1, 7])
def test_batches_and_workers_change_nothing(images: Open, tower: Checkpoint, tmp_path: Path, size: int) -> None:
    images(cache=False).evaluate(tower, settings=ONE, predictions=tmp_path / "a")
    other = Settings(device="cpu", threads=3, batch_size=size)
    images(cache=False).evaluate(tower, settings=other, predictions=tmp_path / "b")
    for task in ("colours", "forms"):
        assert (tmp_path / "a" / f"{task}.jsonl").read_text() == (tmp_path / "b" / f"{task}.jsonl").read_text()


def test_large_sets_are_streamed_to_the_same_end(
    images: Open, tower: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion_bench.taskpool import image_pixels, image_sets

    whole = images(cache=False).evaluate(tower, settings=ONE)
    monkeypatch.setattr(image_pixels, "KEPT", 100)
    monkeypatch.setattr(image_sets, "_KEPT", 1)
    made = images(limit=20)  # all of them, in shuffled order
    read = []
    held = made._data.images("forms")._blocks[0][0]
    inner = held.read
    monkeypatch.setattr(held, "read", lambda number, column: read.append(number) or inner(number, column))
    streamed = made.evaluate(tower, settings=Settings(device="cpu", threads=2, batch_size=4))
    assert [streamed[task]["accuracy"] for task in made.tasks] == [whole[task]["accuracy"] for task in made.tasks]
    # The first image is looked at beforehand, for its size; then each group of rows once, in order.
    assert read[1:] == list(range(7))
    assert not list((tmp_path / "cache" / "pixels").glob("*"))


def test_an_interrupted_evaluation_continues(
    images: Open, tower: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fusion_bench.taskpool.image_prediction import Predictor

    settings = Settings(device="cpu", threads=1, batch_size=4)
    inner, calls = Predictor._batch, []

    def failing(self: Predictor, pixels: Any, stored: Any) -> list[int]:
        calls.append(len(stored))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return inner(self, pixels, stored)

    monkeypatch.setattr(Predictor, "_batch", failing)
    with pytest.raises(KeyboardInterrupt):
        images(select=["forms"]).evaluate(tower, settings=settings)
    resumed = images(select=["forms"]).evaluate(tower, settings=settings)
    assert resumed["forms"]["cached"] == 8
    again = images(select=["forms"]).evaluate(tower, settings=settings)
    assert again["forms"]["cached"] == 20
    assert again["forms"]["accuracy"] == resumed["forms"]["accuracy"]
    # A smaller limit takes a part of the same images; another corruption, other weights none.
    assert images(select=["forms"], limit=5).evaluate(tower, settings=settings)["forms"]["cached"] == 5
    damaged = images(select=["forms"], corruption="contrast").evaluate(tower, settings=settings)
    assert damaged["forms"]["cached"] == 0
    assert images(select=["forms"], cache=False).evaluate(tower, settings=settings)["forms"]["cached"] == 0
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["answers", "heads", "pixels"]


def test_what_is_wrong_is_said_together(images: Open, tower: Checkpoint, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        images(split="test2", clip=str(tmp_path)).check([])
    text = str(told.value)
    assert text.count("no whole set of test2-*.parquet") == 2
    assert f"{tmp_path}: no preprocessor_config.json, no config.json, no tokenizer" in text.replace("  ", "")
    with pytest.raises(CheckpointError, match=r"'t5' is no vision tower"):
        images().check_model({"model_type": "t5"})
    with pytest.raises(ConfigError, match="Did you mean 'forms'"):
        images(select=["form"])
    with pytest.raises(ConfigError, match="unknown corruption 'blur'"):
        images(corruption="blur")
    with pytest.raises(ConfigError, match=r"severity=6: out of range"):
        images(severity=6)
    with pytest.raises(ConfigError, match=r"templates=\['a photo'\]"):
        images(tasks={"forms": {"templates": ["a photo"]}})
    assert images(tasks=["forms"]).tasks == ("forms",)


def test_images_of_another_size_are_refused(images: Open, tower: Checkpoint, clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}).save_pretrained(
        tmp_path / "clip"
    )
    report = images(clip=str(tmp_path / "clip")).evaluate(tower, settings=ONE)
    assert "gives 24 x 24 pixels, the model takes 16 x 16" in report["forms"]["error"]
    assert report["average"] is None


def test_weights_that_are_no_numbers(images: Open, clip: Path) -> None:
    from fusion_bench.checkpoint.memory import MemoryCheckpoint

    part = vision_part(open_checkpoint(clip))
    tensors = {name: part[name].clone() for name in part}
    tensors["post_layernorm.weight"][0] = float("nan")
    report = images().evaluate(MemoryCheckpoint(tensors, config=part.config), settings=ONE)
    assert "its weights are not finite" in report["forms"]["error"]


def test_all_data_sets_of_a_folder(images: Open, tower: Checkpoint, folder: Path, tmp_path: Path) -> None:
    made = images(tasks=None)
    assert made.tasks == ("colours", "forms")
    assert made.evaluate(tower, settings=ONE)["forms"]["n"] == 20
    empty = open_taskpool({"type": "image_classification", "tasks": None})
    with pytest.raises(ConfigError, match=r"every data set in taskpool.data_dir, which is not set"):
        empty.check()
    with pytest.raises(DataError, match="no sub-folder holds test-"):
        images(tasks=None, data_dir=str(tmp_path))


def test_corruption_is_what_is_scored(images: Open, tower: Checkpoint, tmp_path: Path) -> None:
    made = images(corruption="Impluse_noise", severity=3)
    made.evaluate(tower, settings=ONE)
    assert made.describe()["corruption"] == {"name": "impulse_noise", "severity": 3}
    from fusion_bench.taskpool.corruptions import corrupt

    pixels = made._pixels(made._data.images("forms"), range(20), made._clip([]), made._damage)
    stored = pixels.images.stored([7])[0]
    damaged = corrupt(pixels.images.decoded(stored, 7), "impulse_noise", 3, index=7)
    assert (pixels.at([7]) == pixels.processor.resized([damaged])).all()
    assert (pixels.at([7]) != pixels.processor.resized([pixels.images.decoded(stored, 7)])).any()


def test_a_model_is_read_once(images: Open, tower: Checkpoint) -> None:
    import torch

    from fusion_bench.checkpoint.views import Selected

    reads: list[str] = []

    class Counting(Selected):
        def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
            reads.append(name)
            return super().read(name, start, stop)

    report = images().evaluate(Counting(tower, list(tower)), settings=ONE)
    assert report["average"] is not None
    assert sorted(reads) == sorted(tower)
