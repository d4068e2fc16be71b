"""The tiny CLIP of the suite, built from nothing, written, read."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..text.whole import whole
from .canvas import SIDE
from .tokenizer import LENGTH

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import CLIPModel, CLIPVisionModel, PreTrainedTokenizerFast

VISION: Final[dict[str, Any]] = {
    "hidden_size": 96,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
PROJECTION: Final = 64
MEAN, DEVIATION = 0.5, 0.25
_LOUDNESS = 0.5


def build(words: int, images: NDArray[np.uint8], seed: int) -> CLIPModel:
    """A new model; `images` [n, h, w, 3] tell it which patches there are.

    The patch embedding starts as the principal components of the patches, the positions as sines of
    both axes: from the stock initialisation both have to be found first, which costs most of the time.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    text = {**TEXT, "vocab_size": words}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=PROJECTION)
    model: Any = CLIPModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(float(np.log(10.0)))
        embeddings = model.vision_model.embeddings
        embeddings.patch_embedding.weight.copy_(torch.from_numpy(_components(images)))
        embeddings.position_embedding.weight[1:] = torch.from_numpy(_LOUDNESS * _positions())
        embeddings.position_embedding.weight[0] = 0.0
    built: CLIPModel = model
    return built


def _components(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Principal components of the patches, [hidden, 3, patch, patch], responses of nearly one size."""
    side, size = VISION["patch_size"], VISION["hidden_size"]
    count = SIDE // side
    pixels = (images / 255.0 - MEAN) / DEVIATION
    patches = pixels.reshape(-1, count, side, count, side, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3 * side * side)
    values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    values, vectors = values[::-1][:size], vectors[:, ::-1][:, :size]
    # The sign of an eigenvector is arbitrary.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(size)])
    weights = (vectors / np.sqrt(values + values[size // 3])).T.reshape(size, 3, side, side)
    rounded: NDArray[np.float32] = weights.astype(np.float32)
    return rounded


def _positions() -> NDArray[np.float32]:
    """Sines and cosines of row and column at several frequencies, [patches, hidden]."""
    count, size = SIDE // VISION["patch_size"], VISION["hidden_size"]
    row, column = np.divmod(np.arange(count * count), count)
    rates = np.pi * 2.0 ** -np.linspace(0.0, 3.0, size // 4)
    angles = [np.outer(axis, rates) for axis in (row, column)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1).astype(np.float32)


def pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """What the image processor makes of images that have its size already: float32 [n, 3, h, w]."""
    import torch

    return (torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255.0 - MEAN) / DEVIATION


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights in half precision, configuration, tokenizer, image processor as transformers reads them."""
    with whole(folder) as part:
        _half(model).save_pretrained(part)
        tokenizer.save_pretrained(part)
        # The class is known to readers of transformers 4 by its older name alone.
        _rewrite(part / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        _rewrite(part / "preprocessor_config.json", _PROCESSOR)


def save_tower(tower: CLIPVisionModel, folder: Path) -> None:
    """Write a vision tower alone, in half precision."""
    with whole(folder) as part:
        _half(tower).save_pretrained(part)


def load(folder: Path) -> CLIPModel:
    """The saved model in single precision."""
    import torch
    from transformers import CLIPModel

    model: CLIPModel = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model


def load_tower(folder: Path) -> CLIPVisionModel:
    """The saved vision tower in single precision."""
    import torch
    from transformers import CLIPVisionModel

    tower: CLIPVisionModel = CLIPVisionModel.from_pretrained(folder, dtype=torch.float32)
    tower.train(False)
    return tower


_PROCESSOR: Final[dict[str, Any]] = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": SIDE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [MEAN] * 3,
    "image_std": [DEVIATION] * 3,
}


def _half(model: torch.nn.Module) -> Any:
    import torch

    return copy.deepcopy(model).to(torch.float16)


def _rewrite(path: Path, values: Mapping[str, object]) -> None:
    settings = {**(json.loads(path.read_text()) if path.exists() else {}), **values}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
