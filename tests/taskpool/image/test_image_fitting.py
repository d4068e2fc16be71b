"""Images for algorithms that look at data."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pyarrow import parquet
from transformers import CLIPImageProcessorPil, CLIPModel

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.errors import DataError
from fusion_bench.fitting import TaskData
from fusion_bench.settings import Settings
from fusion_bench.taskpool.image_classification import ImageClassification

ONE = Settings(device="cpu", threads=1)
CLASSES = ("red square", "green disc", "blue stripe", "grey field")
TEMPLATES = ("a photo of a {c}.", "my {c}!")
Open = Callable[..., ImageClassification]


def fitting(pool: ImageClassification, tower: Checkpoint, use: Any, protocol: Any, name: str = "forms") -> TaskData:
    found = pool.fitting_data(use, [name], protocol, reference=tower, settings=ONE)
    assert list(found) == [name]
    return found[name]


def test_splits_that_are_fitted_on(images: Open, tmp_path: Path) -> None:
    def split(use: Any, protocol: Any = "disjoint", name: str = "forms", **spec: Any) -> tuple[str, bool, int]:
        facts = images(**spec).fitting_facts(use, [name], protocol)[name]
        return facts["split"], facts["reported"], facts["examples"]

    assert split("train") == ("train", False, 20)
    assert split("adapt") == split("select") == ("validation", False, 8)
    assert split("select", name="colours") == ("train", False, 20)
    assert split("adapt", "paper") == ("test", True, 20)
    assert split("adapt", "paper", limit=6) == ("test", True, 6)
    assert split("train", "paper") == ("train", False, 20)
    assert split("select", limit=6) == ("validation", False, 6)
    assert split("adapt", fit_split="train", limit=6) == ("train", False, 20)
    with pytest.raises(DataError, match=r"taskpool\.fit_split=test: the split that is reported"):
        split("adapt", fit_split="test")
    with pytest.raises(DataError, match=r"unknown task 'form'(.|\n)*no whole set of dev-"):
        images(fit_split="dev").fitting_facts("train", ["form", "forms"], "disjoint")


def test_batches_are_the_images_of_their_ids(images: Open, tower: Checkpoint, clip: Path, folder: Path) -> None:
    made = images()
    data = fitting(made, tower, "train", "disjoint")
    file = folder / "forms" / "default" / "train-00000-of-00001.parquet"
    rows = parquet.read_table(file).column("image").to_pylist()
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    seen: list[int] = []
    for batch in data.batches(7):
        assert batch.labels is not None
        assert batch.labels.tolist() == [place % 4 for place in batch.ids]
        pictures = [Image.open(io.BytesIO(rows[place]["bytes"])).convert("RGB") for place in batch.ids]
        expected = torch.cat([processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures])
        # To the bit: resizing and scaling apart is what the processor does at once.
        torch.testing.assert_close(batch.inputs["pixel_values"], expected, rtol=0, atol=0)
        assert batch.masks == {}
        seen += batch.ids
    assert sorted(seen) == list(range(20))
    assert seen != list(range(20))
    assert next(iter(fitting(images(), tower, "adapt", "disjoint").batches(8))).labels is None


def test_outputs_are_the_heads_and_differentiable(images: Open, tower: Checkpoint, clip: Path) -> None:
    from fusion_bench.family import family_of

    data = fitting(images(), tower, "train", "disjoint")
    batch = data.collate(range(6))
    module: Any = family_of(tower.config).load(tower, torch.float32, torch.device("cpu")).requires_grad_(True)
    whole: Any = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        image = whole.get_image_features(pixel_values=batch.inputs["pixel_values"]).pooler_output
    head = images()._session.text_heads(images()._clip([])).head(CLASSES, TEMPLATES, projected=True, keep=False)
    expected = 20 * torch.nn.functional.normalize(image, dim=1) @ head.weight.T
    logits = data.logits(module, batch)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(data.log_probs(module, batch).exp().sum(1), torch.ones(6))
    gold = data.gold_log_prob(module, batch)
    assert batch.labels is not None
    torch.testing.assert_close(gold, -torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none"))
    gold.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    called = []
    handle = module.post_layernorm.register_forward_hook(lambda *_: called.append(1))
    data.forward(module, batch)
    handle.remove()
    assert called
    hidden = fitting(images(), tower, "adapt", "disjoint")
    with pytest.raises(ValueError, match="right answers are not part"):
        hidden.gold_log_prob(module, hidden.collate([0]))


def test_what_the_digest_of_fitting_data_tells(images: Open, tower: Checkpoint) -> None:
    digests = [
        fitting(images(**spec), tower, use, protocol).digest
        for use, protocol, spec in (
            ("train", "disjoint", {}), ("adapt", "disjoint", {}), ("select", "disjoint", {}), ("adapt", "paper", {}),
            ("adapt", "paper", {"corruption": "contrast"}),
            ("adapt", "paper", {"corruption": "contrast", "severity": 1}),
            ("adapt", "paper", {"limit": 5}), ("train", "disjoint", {"tasks": {"forms": {"templates": ["{c}"]}}}),
        )
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    # Damage is for what stands in for the reported images, not for what models were trained on.
    assert fitting(images(corruption="contrast"), tower, "train", "disjoint").digest == digests[0]
    facts = images(corruption="contrast").fitting_facts("adapt", ["forms"], "paper")["forms"]
    assert facts["corruption"] == {"name": "contrast", "severity": 5}
    damaged = fitting(images(corruption="contrast"), tower, "adapt", "paper").collate(range(4))
    clean = fitting(images(), tower, "adapt", "paper").collate(range(4))
    assert damaged.ids == clean.ids
    assert (damaged.inputs["pixel_values"].std((2, 3)) < clean.inputs["pixel_values"].std((2, 3))).all()


def test_choices_are_made_on_the_held_out_split(images: Open, tower: Checkpoint, tmp_path: Path) -> None:
    report = images(limit=12).held_out("disjoint").evaluate(tower, settings=ONE, predictions=tmp_path)
    assert (report["forms"]["n"], report["colours"]["n"]) == (8, 12)
    facts = images().held_out("disjoint")
    facts.check([])
    assert {task: facts.describe()["data"][task]["split"] for task in facts.tasks} == {
        "colours": "train", "forms": "validation",
    }  # fmt: skip
    paper = images(limit=12).held_out("paper").evaluate(tower, settings=ONE)
    same = images(limit=12).evaluate(tower, settings=ONE)
    assert paper["average"] == same["average"]
    assert paper["forms"]["cached"] == 0
    assert same["forms"]["cached"] == 12
