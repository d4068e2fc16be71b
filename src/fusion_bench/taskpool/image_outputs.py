"""What a live module makes of images: features, and a score for every class of a task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import CheckpointError
from fusion_bench.family.loading import checkpoint_names
from fusion_bench.taskpool.image_session import classifier_of, tower_of
from fusion_bench.taskpool.image_sets import check_order

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.family.vision import ImageClassifier
    from fusion_bench.taskpool.image_heads import Head

Output = Callable[[Any, "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """`features`: module and normalised images to what the layers make of them; `logits`: to a score for every class.

    `digest`: of what `logits` holds beside the module.
    """

    features: Output
    logits: Output
    digest: str


def zero_shot_outputs(config: Mapping[str, Any], head: Head, what: str) -> Outputs:
    """Those of a vision tower under a head, which `what` names."""
    family = tower_of(config)

    def logits(module: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        features = family.features(module, pixel_values)
        head.check_width(features.shape[-1], what)
        return head.logits(features)

    return Outputs(family.features, logits, head.digest)


def own_outputs(
    config: Mapping[str, Any], task: str, classes: Sequence[str], head: Checkpoint | None = None, worn: bool = False
) -> Outputs:
    """Those of a classifier under `head`, that of the task's own model; None: under the one that the module bears.

    `worn`: the module bears `head` already. Otherwise it is put in the place for each call, which threads that share a
    module must not do.
    """
    family = classifier_of(config)
    named = _class_names(config if head is None else head.config)
    if named:
        check_order(task, classes, named, "the model's config.json (id2label)")
    # By device and dtype of the modules that are met: one of each in a run.
    placed: dict[tuple[Any, ...], dict[str, torch.Tensor]] = {}

    def logits(module: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        if head is None or worn:
            scores = family.logits(module, pixel_values)
        else:
            key = (pixel_values.device, pixel_values.dtype)
            if key not in placed:
                placed[key] = head_tensors(module, head, *key)
            scores = _under(placed[key], family, module, pixel_values)
        if scores.shape[-1] != len(classes):
            raise CheckpointError(
                f"{task}: the model's head has {scores.shape[-1]} classes, the task has {len(classes)}."
            )
        return scores

    return Outputs(logits, logits, "own" if head is None else _digest(head))


def head_tensors(
    module: torch.nn.Module, head: Checkpoint, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """A head's tensors by their names inside a module."""
    import torch

    inside = {stored: name for name, stored in checkpoint_names(module).items()}
    # Whatever mode they are asked for in, they serve for gradients later.
    with torch.inference_mode(False):
        return {inside.get(name, name): head[name].to(device, dtype) for name in head}


@contextmanager
def wearing(
    module: torch.nn.Module, head: Checkpoint | None, device: torch.device, dtype: torch.dtype
) -> Iterator[None]:
    """The module bears `head` inside, and what it bore before afterwards; None changes nothing."""
    import torch

    worn = {} if head is None else head_tensors(module, head, device, dtype)
    before: list[tuple[torch.nn.Module, str, Any]] = []
    for name, tensor in worn.items():
        owner, _, leaf = name.rpartition(".")
        part = module.get_submodule(owner)
        before.append((part, leaf, getattr(part, leaf)))
        setattr(part, leaf, torch.nn.Parameter(tensor, requires_grad=False))
    try:
        yield
    finally:
        for part, leaf, tensor in before:
            setattr(part, leaf, tensor)


def _under(
    tensors: Mapping[str, torch.Tensor], family: ImageClassifier, module: torch.nn.Module, pixel_values: torch.Tensor
) -> torch.Tensor:
    """The logits of a module some of whose tensors are replaced for the call."""
    import torch

    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return family.logits(self.inner, values)

    replaced = {f"inner.{name}": tensor for name, tensor in tensors.items()}
    scores: torch.Tensor = torch.func.functional_call(Call(), replaced, (pixel_values,))
    return scores


def _class_names(config: Mapping[str, Any]) -> list[str]:
    """What a config.json calls the classes, in order; nothing where it leaves them unnamed (LABEL_0, LABEL_1, …)."""
    given = config.get("id2label") or {}
    names = [str(given[key]) for key in sorted(given, key=int)]
    return [] if any(name == f"LABEL_{place}" for place, name in enumerate(names)) else names


def _digest(head: Checkpoint) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for name in head:
        tensor = head[name].double().contiguous()
        whole.update(f"{name}{tuple(tensor.shape)}".encode())
        whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()


def check_size(config: Mapping[str, Any], given: tuple[int, int], where: str) -> None:
    """CheckpointError where images of this height and width are not what a model takes; `where` they come from."""
    from fusion_bench.family import family_of
    from fusion_bench.family.vision import ImageClassifier, VisionTower

    family = family_of(config)
    side = family.image_size(config) if isinstance(family, (VisionTower, ImageClassifier)) else None
    if side is not None and given != (side, side):
        raise CheckpointError(
            f"the image processor of {where} gives {given[0]} x {given[1]} pixels, the model takes {side} x {side}. "
            "Set taskpool.clip to the pre-trained model that the tower was fine-tuned from."
        )
