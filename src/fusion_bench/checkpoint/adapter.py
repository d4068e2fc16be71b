"""A PEFT adapter over a base, as one checkpoint: LoRA, DoRA or (IA)^3 folded tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.adapter_edits import AddLowRank, Multiply
from fusion_bench.checkpoint.adapter_plan import Planner
from fusion_bench.checkpoint.base import Checkpoint, Delta, Dense, LowRank, Scale, TensorInfo
from fusion_bench.checkpoint.digests import digest
from fusion_bench.checkpoint.dtypes import compute_name, torch_dtype
from fusion_bench.checkpoint.peft_config import adapter_base, read_adapter_config
from fusion_bench.checkpoint.pickle import PickleCheckpoint
from fusion_bench.checkpoint.safetensors import SafetensorsCheckpoint
from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["AdapterCheckpoint", "adapter_base"]

_WEIGHTS = "adapter_model.safetensors"
_PICKLED_WEIGHTS = "adapter_model.bin"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.json", "vocab.txt")


class AdapterCheckpoint(Checkpoint):
    """What PEFT's ``merge_and_unload`` gives, without building the model; nothing larger than a slice is held.

    Sums run in float32 (float64 over a float64 base) and are cast once to the base's dtype. As in PEFT, an adapter on
    one of several tied names changes their common tensor, while modules saved in full (modules_to_save) become
    separate tensors. So declare the base's ties on `base` (`WithAliases`), never on top of this.
    """

    def __init__(self, base: Checkpoint, folder: Path, commit: str | None = None) -> None:
        """Reads the adapter's config and headers. Raises CheckpointError listing everything that does not fit."""
        self._base = base
        self._path = Path(folder)
        self._commit = commit
        self._tensors = _open_weights(self._path)
        config = read_adapter_config(self._path)
        self._plan = Planner(base, self._tensors, config, str(self._path), self._original).plan()

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._plan.infos)

    @property
    def aliases(self) -> Mapping[str, str]:
        return MappingProxyType(self._plan.aliases)

    @property
    def base(self) -> Checkpoint:
        return self._base

    @property
    def config(self) -> Mapping[str, Any]:
        return self._base.config

    @property
    def folder(self) -> Path | None:
        """The adapter's own folder where it has a tokenizer, else the base's."""
        own = any((self._path / name).is_file() for name in _TOKENIZER_FILES)
        return self._path if own else self._base.folder

    @property
    def identity(self) -> Mapping[str, Any]:
        # Scales and ranks stand in the config alone.
        config = digest((self._path / "adapter_config.json").read_bytes()).hex()
        return {**self._tensors.identity, "adapter_config": config, "commit": self._commit, "base": self._base.identity}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        stored, begin, end = self.span(name, start, stop)
        dtype = torch_dtype(self._plan.infos[stored].dtype)
        edit = self._plan.edits.get(stored)
        if edit is None:
            return self._unedited(stored, begin, end).to(dtype)
        values = self._original(stored, begin, end)
        edit.apply(begin, values)
        return values.to(dtype)

    def apply_delta(self, name: str, start: int, base_slice: torch.Tensor) -> torch.Tensor:
        """This checkpoint's entries from `start` on, given the base's in `base_slice` (1-D, float32 or float64).

        For callers that hold the base's slice already: only the adapter is read. Not rounded to the base's dtype; for
        float32 bases the values are those of `read`, bit for bit. `base_slice` is left as it is.
        """
        stored, begin, end = self.span(name, start, start + base_slice.numel())
        if stored in self._plan.replaced:
            values = self._original(stored, begin, end)
        else:
            values = base_slice.to(torch_dtype(compute_name(self._plan.infos[stored].dtype)), copy=True)
        edit = self._plan.edits.get(stored)
        if edit is not None:
            edit.apply(begin, values)
        return values

    def change(self, name: str, start: int, base_slice: torch.Tensor) -> torch.Tensor:
        import torch

        stored, begin, _ = self.span(name, start, start + base_slice.numel())
        edit = self._plan.edits.get(stored)
        if stored in self._plan.replaced or (edit is not None and not edit.additive):
            return super().change(name, start, base_slice)
        values = torch.zeros_like(base_slice, dtype=torch_dtype(compute_name(self._plan.infos[stored].dtype)))
        if edit is not None:
            edit.apply(begin, values)
        return values

    def delta(self, name: str) -> Delta:
        stored = self.stored(name)
        if stored not in self._plan.infos:
            raise KeyError(name)
        if stored in self._plan.replaced:
            return Dense()
        edit = self._plan.edits.get(stored)
        return edit.delta() if edit is not None else None

    @property
    def path(self) -> Path:
        """The folder of the adapter."""
        return self._path

    @property
    def tensors(self) -> Checkpoint:
        """The adapter's own tensors under the names of its file."""
        return self._tensors

    @property
    def modules(self) -> Mapping[str, str]:
        """Stored name of each tensor that factors or vectors change -> the module that the adapter's file names."""
        return MappingProxyType(self._plan.origins)

    def kind(self, name: str) -> type[LowRank] | type[Scale] | type[Dense] | None:
        """The type of `delta(name)`, told without reading."""
        stored = self.stored(name)
        if stored in self._plan.replaced:
            return Dense
        edit = self._plan.edits.get(stored)
        if edit is None:
            return None
        return LowRank if isinstance(edit, AddLowRank) else Scale if isinstance(edit, Multiply) else Dense

    def close(self) -> None:
        """Closes the adapter's own file; the base belongs to whoever opened it."""
        self._tensors.close()

    def _unedited(self, stored: str, begin: int, end: int) -> torch.Tensor:
        if stored in self._plan.replaced:
            return self._tensors.read(self._plan.replaced[stored], begin, end)
        return self._base.read(stored, begin, end)

    def _original(self, stored: str, begin: int, end: int) -> torch.Tensor:
        """The tensor before its edit, in compute precision."""
        info = self._plan.infos[stored]
        values = self._unedited(stored, begin, end)
        if stored in self._plan.replaced:
            values = values.to(torch_dtype(info.dtype))
        return values.to(torch_dtype(compute_name(info.dtype)))


def _open_weights(folder: Path) -> Checkpoint:
    """The adapter's own tensors: safetensors, else a pickle of plain weights."""
    for name, kind in ((_WEIGHTS, SafetensorsCheckpoint), (_PICKLED_WEIGHTS, PickleCheckpoint)):
        if (folder / name).is_file():
            return kind(folder / name, config={})
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
    raise CheckpointError(f"{folder}: holds no adapter. Looked for {_WEIGHTS} or {_PICKLED_WEIGHTS}; there is {there}.")
