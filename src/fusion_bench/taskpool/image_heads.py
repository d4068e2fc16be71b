"""What turns the features of a vision tower into a score for every class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.errors import CheckpointError, ConfigError
from fusion_bench.taskpool.image_tasks import canonical, fold

if TYPE_CHECKING:
    import torch

_SUFFIXES: Final = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True, eq=False)
class Head:
    """logits = scale · cos(projection x features, class) + bias.

    `weight`: classes x width, rows of unit length unless they carry a scale of their own; `projection`: from the
    tower's features into the joint space of images and texts, None where they lie in it.
    """

    weight: torch.Tensor
    projection: torch.Tensor | None = None
    scale: float = 1.0
    bias: torch.Tensor | None = None

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Rows x classes; differentiable, in float32 at least."""
        from torch.nn.functional import normalize

        placed = features.to(self.weight.dtype)
        if self.projection is not None:
            placed = placed @ self.projection.T
        scores = self.scale * (normalize(placed, dim=-1) @ self.weight.T)
        return scores if self.bias is None else scores + self.bias

    def to(self, device: torch.device, dtype: torch.dtype) -> Head:
        """The head for features of this dtype."""
        import torch

        wide = torch.float64 if dtype == torch.float64 else torch.float32
        weight, projection, bias = (
            None if tensor is None else tensor.to(device, wide) for tensor in (self.weight, self.projection, self.bias)
        )
        assert weight is not None
        return Head(weight, projection, self.scale, bias)

    @property
    def digest(self) -> str:
        """128 bits over its values."""
        whole = hashlib.blake2b(repr(self.scale).encode(), digest_size=16)
        for tensor in (self.weight, self.projection, self.bias):
            whole.update(b"-" if tensor is None else f"{tuple(tensor.shape)}".encode())
            if tensor is not None:
                whole.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return whole.hexdigest()

    def check_width(self, width: int, what: str) -> None:
        """ConfigError where features of this width do not fit."""
        expected = (self.weight if self.projection is None else self.projection).shape[1]
        if width != expected:
            raise ConfigError(
                f"taskpool.clip: the tower's features have the width {width}, {what} takes {expected}. The head must "
                "come from the pre-trained model that the tower was fine-tuned from."
            )


def head_file(folder: str, task: str) -> Path:
    """``head_<Task>.safetensors`` (.pt, .bin) of a folder, the task in any spelling; ConfigError where absent."""
    place = Path(folder).expanduser()
    files = [file for file in sorted(place.glob("head_*")) if file.suffix in _SUFFIXES] if place.is_dir() else []
    named = {fold(canonical(file.stem.removeprefix("head_").removesuffix("Val"))): file for file in reversed(files)}
    if fold(task) not in named:
        present = ", ".join(file.name for file in files) or "none"
        raise ConfigError(
            f"taskpool.heads={folder}: no head_<task>.safetensors or .pt for {task!r}. Heads there: {present}."
        )
    return named[fold(task)]


def read_head(file: Path, classes: int, projection: torch.Tensor | None = None, pickled_modules: bool = False) -> Head:
    """A head as task arithmetic publishes them (arXiv:2212.04089): a linear layer on features of unit length.

    Its rows already carry the temperature. CheckpointError where it is none, or of another number of classes.
    """
    tensors = _tensors(file, pickled_modules)
    weight = next((tensors[name] for name in ("weight", "classification_head.weight") if name in tensors), None)
    if weight is None or weight.ndim != 2:
        raise CheckpointError(f"{file}: holds no matrix called weight, but {', '.join(sorted(tensors)) or 'nothing'}.")
    if len(weight) != classes:
        raise CheckpointError(f"{file}: is a head of {len(weight)} classes, the task has {classes}.")
    bias = next((tensors[name] for name in ("bias", "classification_head.bias") if name in tensors), None)
    return Head(weight.float(), projection, bias=None if bias is None else bias.float())


def _tensors(file: Path, pickled_modules: bool) -> Mapping[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        return open_checkpoint(file)
    from fusion_bench.checkpoint.pickle import load_weights

    try:
        return load_weights(file, pickled_modules=pickled_modules)
    except CheckpointError as fault:
        if pickled_modules:
            raise
        raise CheckpointError(
            f"{fault} The heads of a task pool are read so with taskpool.pickled_modules=true."
        ) from None
