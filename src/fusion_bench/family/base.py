"""The abstract model family: the only place where a checkpoint becomes a live module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.structure import Structure
from fusion_bench.family.layers import structure_of
from fusion_bench.family.ties import Ties

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint, TensorInfo

Advance = Callable[[float], None]


class ModelFamily(ABC):
    """What is known of one kind of architecture. Stateless."""

    name: str
    # Tensors that published files carry and no version of the architecture reads: neither fused nor counted.
    unread: frozenset[str] = frozenset()

    @abstractmethod
    def load(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        threads: int = 1,
        advance: Advance | None = None,
    ) -> torch.nn.Module:
        """A module in eval mode whose parameters equal the checkpoint's, cast to `dtype`, on `device`.

        `threads` tensors are read at once; `advance` is told the bytes of each. Raises CheckpointError where the
        checkpoint's names or shapes are not those of the architecture.
        """

    @abstractmethod
    def reload(
        self, module: torch.nn.Module, checkpoint: Checkpoint, threads: int = 1, advance: Advance | None = None
    ) -> None:
        """Fills `module`, made by `load`, with the values of another checkpoint of the same names and shapes."""

    def structure(self, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> Structure:
        """Which tensors are linear layers and which block each belongs to. Reads names, shapes and the mapping."""
        return structure_of(config, infos)

    def token_stream(self, layer: str) -> str:
        """The stream of padded tokens that the layer at a module path works on; "" where nothing is padded."""
        return ""

    @abstractmethod
    def aliases(self, config: Mapping[str, Any]) -> Ties:
        """Names that the architecture described by `config` ties.

        Reads only the mapping; imports neither torch nor transformers.
        """
