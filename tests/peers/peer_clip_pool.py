"""A pool of random CLIP image encoders on disk, beside random images for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fusion_bench.fitting import Batch, TaskData

IMAGES = "images.safetensors"
WORDS = ("<pad>", "<unk>", "<start>", "<end>", "a", "photo", "of", "one", "two")


@dataclass(frozen=True)
class Size:
    """The shape of the image encoder, what it is given, how far fine-tunes are from the base (standard deviation)."""

    width: int
    inner: int
    layers: int
    heads: int
    image: int
    patch: int
    projection: int
    models: int
    images: int
    step: float


class Pixels(TaskData):
    """The images of a task in the file that `make` writes, in the given order, read batch by batch."""

    def __init__(self, file: Path, task: str, order: Sequence[int] | None = None) -> None:
        self.name, self.facts, self.digest, self._file = task, {}, "", file
        with safe_open(file, "pt") as opened:
            self._order = range(opened.get_slice(task).get_shape()[0]) if order is None else order

    def __len__(self) -> int:
        return len(self._order)

    def collate(self, places: Sequence[int]) -> Batch:
        chosen = [self._order[place] for place in places]
        with safe_open(self._file, "pt") as opened:
            stored = opened.get_slice(self.name)
            pixels = torch.cat([stored[index : index + 1] for index in chosen])
        return Batch({"pixel_values": pixels}, tuple(chosen))

    def forward(self, module: Any, batch: Batch) -> None:
        module(**batch.inputs)

    def logits(self, module: Any, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def log_probs(self, module: Any, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def gold_log_prob(self, module: Any, batch: Batch) -> torch.Tensor:
        raise NotImplementedError


SIZES: Mapping[str, Size] = {
    "tiny": Size(16, 40, 2, 2, 16, 4, 8, models=4, images=40, step=0.02),
    "b32": Size(768, 3072, 12, 12, 224, 32, 512, models=8, images=64, step=0.002),
}


def make(folder: Path, size: Size, dtype: str = "float32") -> list[str]:
    """Writes base/ (a whole CLIP with a small text tower), task0/ … (its image encoder, moved), images; the tasks.

    Images are what the encoder takes: a tensor a task, examples x 3 x side x side, normally distributed with a mean
    and a deviation of the task's own. Pools of two dtypes hold the same numbers.
    """
    from transformers import CLIPModel, CLIPVisionModel

    base = CLIPModel(_config(size)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in base.parameters():
            # What is born as 0 or 1 (biases, layer norms) and as 0.02 times noise becomes like a trained model's.
            parameter.add_(_noise(parameter, generator, 0.05))
    state = {name: value.clone() for name, value in base.vision_model.state_dict().items()}
    base.to(getattr(torch, dtype)).save_pretrained(folder / "base")
    _save_processor(folder / "base", size)
    images = {}
    for number in range(size.models):
        task = f"task{number}"
        generator = torch.Generator().manual_seed(number + 1)
        tower = CLIPVisionModel(base.config.vision_config).to(torch.float32).eval()
        tower.load_state_dict({name: value + _noise(value, generator, size.step) for name, value in state.items()})
        tower.to(getattr(torch, dtype)).save_pretrained(folder / task)
        shape = (size.images, 3, size.image, size.image)
        pixels = torch.randn(shape, generator=generator) * (0.5 + 0.2 * number) + 0.3 * (number - 1)
        images[task] = pixels.to(getattr(torch, dtype))
    save_file(images, folder / IMAGES)
    return list(images)


def _noise(like: torch.Tensor, generator: torch.Generator, deviation: float) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator) * deviation


def _config(size: Size) -> Any:
    from transformers import CLIPConfig

    vision = {
        "hidden_size": size.width, "intermediate_size": size.inner, "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads, "image_size": size.image, "patch_size": size.patch,
    }  # fmt: skip
    text = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": len(WORDS), "max_position_embeddings": 16,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    torch.manual_seed(0)
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=size.projection)


def _save_processor(folder: Path, size: Size) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, unknown, start, end = WORDS[:4]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 2), (end, 3)]
    )
    made: Any = PreTrainedTokenizerFast
    made(
        tokenizer_object=inner, pad_token=pad, unk_token=unknown, bos_token=start, eos_token=end, model_max_length=16
    ).save_pretrained(folder)
    side = {"height": size.image, "width": size.image}
    image = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": size.image},
        "do_center_crop": True, "crop_size": side, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(image), encoding="utf-8")
