"""Models without their head, heads by themselves, and a head put onto another model's body."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
from fusion_bench.checkpoint.folder import listed
from fusion_bench.checkpoint.views import Selected, View
from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# What a config.json says of the classes, and of the class of model that ends in such a head.
LABELS: Final = ("num_labels", "id2label", "label2id", "problem_type", "architectures")


class Headless(View):
    """`inner` without the tensors called `names`, and without what its config says of classes.

    `head` is what was left out, under the same names, with the whole config of `inner`.
    """

    def __init__(self, inner: Checkpoint, names: Collection[str]) -> None:
        left = frozenset(names)
        aliases = {alias: name for alias, name in inner.aliases.items() if name not in left}
        super().__init__(inner, {name: name for name in inner if name not in left}, aliases)
        self.head: Checkpoint = Selected(inner, left)

    def apply_delta(self, name: str, start: int, base_slice: torch.Tensor) -> torch.Tensor:
        return self.inner.apply_delta(self.stored(name), start, base_slice)

    def change(self, name: str, start: int, base_slice: torch.Tensor) -> torch.Tensor:
        return self.inner.change(self.stored(name), start, base_slice)

    @property
    def config(self) -> Mapping[str, Any]:
        return {key: value for key, value in self.inner.config.items() if key not in LABELS}

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.inner.identity, "part": "all but the head"}


class WithHead(Checkpoint):
    """A `body`, fused or not, that ends in the `head` of a model; the classes of its config are the head's.

    A tensor that both hold is the head's. CheckpointError where the head is empty.
    """

    def __init__(self, body: Checkpoint, head: Checkpoint) -> None:
        if not head:
            raise CheckpointError("the head holds no tensors: its model has none, so it cannot classify.")
        self.body, self.head = body, head
        clash = sorted(name for name in head if name in body.aliases)
        if clash:
            raise CheckpointError(f"the body ties tensors of the head: {listed(clash)}.")
        self._infos = dict(sorted({**body.infos, **head.infos}.items()))

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    @property
    def aliases(self) -> Mapping[str, str]:
        return self.body.aliases

    def _holder(self, stored: str) -> Checkpoint:
        return self.head if stored in self.head.infos else self.body

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        stored, begin, end = self.span(name, start, stop)
        return self._holder(stored).read(stored, begin, end)

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        stored, begin, _ = self.span(name, start, start + out.numel())
        self._holder(stored).read_into(stored, begin, out)

    def step(self, name: str) -> int:
        stored = self.stored(name)
        return self._holder(stored).step(stored)

    @property
    def config(self) -> Mapping[str, Any]:
        labels = {key: value for key, value in self.head.config.items() if key in LABELS}
        return {**{key: value for key, value in self.body.config.items() if key not in LABELS}, **labels}

    @property
    def folder(self) -> Path | None:
        """The head's: there lie the image processor and the names of the classes that it was trained with."""
        return self.head.folder or self.body.folder

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"body": self.body.identity, "head": self.head.identity}


class Heads(Mapping[str, Checkpoint]):
    """The heads of the models that were opened without them, by name; opened when first asked for."""

    def __init__(self, models: Mapping[str, Checkpoint]) -> None:
        self._models = models

    def __getitem__(self, name: str) -> Checkpoint:
        model = self._models[name]
        if not isinstance(model, Headless):
            raise CheckpointError(
                f"{name}: was opened whole, so it has no head apart from it. Give modelpool.own_heads=true."
            )
        return model.head

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)
