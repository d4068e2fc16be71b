"""Memory that a worker uses over and over."""

from __future__ import annotations

import threading

import torch

CPU = torch.device("cpu")
# Larger tensors are given back after use: kept ones would add up over threads and roles.
_KEPT_ENTRIES = 2**21


class Scratch(threading.local):
    """Uninitialised tensors by role, one set per thread.

    Fresh memory of this size costs page faults at every use, and small results allocated between large temporaries
    would keep the heap from shrinking.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, role: str, numel: int, dtype: torch.dtype, device: torch.device = CPU) -> torch.Tensor:
        """A 1-D tensor of `numel` entries; what an earlier call with this role gave is overwritten."""
        key = (role, dtype, device)
        buffer = self._held.get(key)
        if buffer is None or buffer.numel() < numel:
            buffer = torch.empty(numel, dtype=dtype, device=device)
            if numel <= _KEPT_ENTRIES:
                self._held[key] = buffer
        return buffer[:numel]

    def like(self, role: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory in the shape of `tensor`."""
        return self.take(role, tensor.numel(), dtype or tensor.dtype, tensor.device).view(tensor.shape)


SCRATCH = Scratch()
