"""What was measured on a model: tensors, the parameters that they belong to, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.memory import MemoryCheckpoint

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint


@dataclass(frozen=True)
class Statistics:
    """Tensors measured on one model with the data of one task.

    `index`: parameter -> the tensor that holds its statistic; parameters that are given the same input share one, and
    those that were never reached have none. `record`: examples, tokens, FLOPs, bytes and seconds, ready for JSON.
    """

    tensors: Checkpoint
    index: Mapping[str, str]
    record: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], index: Mapping[str, str] | None = None) -> Statistics:
        """Tensors in memory; each is its own parameter's where no `index` is given."""
        return cls(MemoryCheckpoint(tensors), index if index is not None else {name: name for name in tensors})

    def __contains__(self, parameter: object) -> bool:
        return parameter in self.index

    def __getitem__(self, parameter: str) -> torch.Tensor:
        return self.tensors[self.index[parameter]]

    def read(self, parameter: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Entries ``start:stop`` of the flattened statistic of a parameter."""
        return self.tensors.read(self.index[parameter], start, stop)

    def renamed(self, names: Mapping[str, str]) -> Statistics:
        """The same for parameters by other names: new name -> name in this index; names without a statistic drop."""
        return replace(self, index={new: self.index[old] for new, old in names.items() if old in self.index})

    @property
    def held(self) -> int:
        """Bytes that this keeps in memory: none where the tensors lie in files."""
        if not isinstance(self.tensors, MemoryCheckpoint):
            return 0
        return sum(info.nbytes for info in self.tensors.infos.values())
