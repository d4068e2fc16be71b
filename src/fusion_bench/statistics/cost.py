"""What a measurement costs: floating-point operations, examples, tokens, seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.statistics.live import is_conv1d

if TYPE_CHECKING:
    import torch

    from fusion_bench.fitting import Batch

CONVENTION: Final = (
    "forward: 2 operations an entry of each weight of linear layers, attention projections and convolutions, at each "
    "position computed, padding included; backward: twice the forward; Gram of n tokens of width d: 2 n d^2; products "
    "of activations, norms and embeddings are not counted"
)


class Meter:
    """Counts while a module runs. `forward`: operations since the last `backward` was told."""

    def __init__(self) -> None:
        self.flops = 0.0
        self.examples = 0
        self.tokens: dict[str, int] = {}
        self._last = 0.0
        self._started = time.perf_counter()

    def batch(self, batch: Batch) -> None:
        """Tells that a batch is about to run."""
        self._last = 0.0
        self.examples += len(batch)
        for stream, mask in batch.masks.items():
            self.tokens[stream] = self.tokens.get(stream, 0) + int(mask.sum())

    def backward(self) -> None:
        """Tells that gradients went once through what ran since `batch`."""
        self.flops += 2 * self._last

    def ran(self, operations: float) -> None:
        self.flops += operations
        self._last += operations

    def record(self) -> dict[str, Any]:
        """The counts, ready for JSON."""
        return {
            "examples": self.examples,
            "tokens": dict(self.tokens),
            "flops": self.flops,
            "flops_convention": CONVENTION,
            "seconds": round(time.perf_counter() - self._started, 3),
        }


@contextmanager
def metered(module: torch.nn.Module) -> Iterator[Meter]:
    """A meter of the module's weights for as long as the context lasts."""
    import torch

    meter = Meter()
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)

    def linear(inside: Any, given: Any, output: Any) -> None:
        outputs = inside.weight.shape[1] if is_conv1d(inside) else inside.weight.shape[0]
        meter.ran(2.0 * inside.weight.numel() * output.numel() / max(1, outputs))

    def attention(inside: Any, given: Any, named: Any, output: Any) -> None:
        # Its projections are not modules that run: their weights are handed to one function.
        weights = sum(w.numel() for n, w in inside.named_parameters() if n.endswith("weight"))
        meter.ran(2.0 * weights * output[0].numel() / inside.embed_dim)

    handles = []
    for inside in module.modules():
        if isinstance(inside, kinds) or is_conv1d(inside):
            handles.append(inside.register_forward_hook(linear))
        elif isinstance(inside, torch.nn.MultiheadAttention):
            handles.append(inside.register_forward_hook(attention, with_kwargs=True))
    try:
        yield meter
    finally:
        for handle in handles:
            handle.remove()
