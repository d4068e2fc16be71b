"""A tiny CLIP in the Hub's layout, image files, a pool over both."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.family.clip_vision import vision_part
from fusion_bench.taskpool import open_taskpool
from fusion_bench.taskpool.image_classification import ImageClassification

CLASSES = ("red square", "green disc", "blue stripe", "grey field")
TEMPLATES = ("a photo of a {c}.", "my {c}!")
SIDE = 16
Open = Callable[..., ImageClassification]


def pictures(count: int, seed: int) -> list[Image.Image]:
    """Noise with a colour cast, of many sizes and modes."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        height, width = (int(side) for side in random.integers(9, 40, 2))
        pixels = random.integers(0, 256, (height, width, 3)) * random.random(3)
        image = Image.fromarray(pixels.astype(np.uint8))
        found.append(image.convert("L") if number % 5 == 4 else image)
    return found


def write_images(
    place: Path, split: str, images: Sequence[Image.Image], labels: Sequence[int], names: Sequence[str] | None = None
) -> Path:
    """One parquet file in the Hub's layout with three images a row group."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        content = io.BytesIO()
        image.save(content, "PNG")
        rows.append({"image": {"bytes": content.getvalue(), "path": None}, "label": label})
    table = pa.Table.from_pylist(rows)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{split}-00000-of-00001.parquet"
    parquet.write_table(table, file, row_group_size=3)
    return file


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP with tokenizer and image processor, as the Hub lays it out."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder, seed=0)
    return folder


def save_clip(folder: Path, seed: int, width: int = 16) -> None:
    """`width`: of the vision tower, with a head for every 64 channels, two at least below that."""
    torch.manual_seed(seed)
    small = {"intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **small, "hidden_size": 12, "vocab_size": 99, "max_position_embeddings": 40, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0,
        },
        vision_config={
            **small, "hidden_size": width, "image_size": SIDE, "patch_size": 8,
            "num_attention_heads": 2 if width < 64 else width // 64,
        },
        projection_dim=10,
    )  # fmt: skip
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        model.logit_scale.fill_(math.log(20))
    model.save_pretrained(folder)
    letters = [chr(code) for code in range(32, 127)]
    inner = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )


@pytest.fixture
def tower(clip: Path) -> Checkpoint:
    return vision_part(open_checkpoint(clip))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of 20 images, one with a validation split."""
    root = tmp_path_factory.mktemp("images")
    labels = [number % 4 for number in range(20)]
    for task, seed in (("colours", 1), ("forms", 2)):
        for split, more in (("train", 10), ("test", 20)):
            write_images(root / task / "default", split, pictures(20, seed + more), labels, CLASSES)
    write_images(root / "forms" / "default", "validation", pictures(8, 9), labels[:8], CLASSES)
    return root


@pytest.fixture
def images(folder: Path, clip: Path) -> Open:
    """Opens a pool over those; keywords are its fields."""

    def opened(**spec: Any) -> ImageClassification:
        tasks = {name: {"templates": list(TEMPLATES)} for name in ("colours", "forms")}
        values = {"type": "image_classification", "data_dir": str(folder), "clip": str(clip), "tasks": tasks, **spec}
        made = open_taskpool(values)
        assert isinstance(made, ImageClassification)
        return made

    return opened


def _plain_predictions(clip: Path, file: Path, template: str | None = None) -> list[int]:
    """What CLIPModel says of every image of a file; with one template its own logits, else with averaged prompts."""
    model: Any = CLIPModel.from_pretrained(clip).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(clip), CLIPImageProcessorPil.from_pretrained(clip)
    rows = parquet.read_table(file).column("image").to_pylist()
    pixels = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows]
    values = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in pixels])
    with torch.no_grad():
        if template is not None:
            text = tokenizer([template.replace("{c}", name) for name in CLASSES], padding=True, return_tensors="pt")
            inputs = {key: text[key] for key in ("input_ids", "attention_mask")}
            return model(**inputs, pixel_values=values).logits_per_image.argmax(1).tolist()
        image = model.get_image_features(pixel_values=values).pooler_output
        scores = []
        for name in CLASSES:
            mean = torch.zeros(10)
            for pattern in TEMPLATES:
                ids = tokenizer(pattern.replace("{c}", name), return_tensors="pt")["input_ids"]
                row = model.get_text_features(input_ids=ids).pooler_output[0]
                mean += row / row.norm()
            scores.append(image @ (mean / mean.norm()))
        return torch.stack(scores, 1).argmax(1).tolist()


def _outputs(file: Path) -> list[int]:
    return [json.loads(line)["output"] for line in file.read_text().splitlines()]


@pytest.fixture
def outputs() -> Callable[[Path], list[int]]:
    """Reads the predicted classes out of a file of predictions."""
    return _outputs


@pytest.fixture
def plain_predictions() -> Callable[..., list[int]]:
    """What transformers says: `(clip, file, template)`."""
    return _plain_predictions


@pytest.fixture
def make_clip() -> Callable[..., None]:
    """Saves a random CLIP: `(folder, seed, width)`."""
    return save_clip
