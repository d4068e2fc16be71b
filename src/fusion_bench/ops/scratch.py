"""Memory that a worker uses over and over."""

from __future__ import annotations

import threading

import torch


class Scratch(threading.local):
    """Uninitialised tensors by role, one set per thread.

    Fresh memory of this size costs page faults at every use, and small results allocated between large temporaries
    would keep the heap from shrinking.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, role: str, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """A 1-D tensor of `numel` entries; what an earlier call with this role gave is overwritten."""
        buffer = self._held.get((role, dtype))
        if buffer is None or buffer.numel() < numel:
            buffer = torch.empty(numel, dtype=dtype)
            self._held[role, dtype] = buffer
        return buffer[:numel]

    def like(self, role: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory in the shape of `tensor`."""
        return self.take(role, tensor.numel(), dtype or tensor.dtype).view(tensor.shape)


SCRATCH = Scratch()
