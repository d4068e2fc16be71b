"""Random numbers that belong to an entry of a tensor: the same however the tensor is cut and whoever draws first."""

from __future__ import annotations

import numpy as np
import torch
import xxhash

from fusion_bench.ops.scratch import SCRATCH

# Entries that share a generator. Fixed: another number would be another draw.
_BLOCK = 2**18
# Small enough for memory that the allocator keeps at hand.
_AT_ONCE = 2**14
_HALF = 2**31


def bits(seed: int, model: str, tensor: str, start: int, stop: int) -> torch.Tensor:
    """32 uniform random bits for each of the entries ``start:stop`` of a tensor of a model, as int32.

    Drawn from a generator (SFC64) for each block of 2^18 entries, seeded by the four names alone. The result
    lives in scratch memory and is overwritten by the worker's next call.
    """
    out = SCRATCH.take("bits", stop - start, torch.int32)
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        key = xxhash.xxh3_128_intdigest(f"{seed}\0{model}\0{tensor}\0{block}".encode())
        generator = np.random.Generator(np.random.SFC64(key))
        begin = block * _BLOCK
        # A block is drawn from its beginning, so that an entry's number does not depend on where a slice starts.
        for first in range(begin, min(stop, begin + _BLOCK), _AT_ONCE):
            last = min(stop, first + _AT_ONCE)
            drawn = generator.integers(0, 2**64, size=(last - first + 1) // 2, dtype=np.uint64).view(np.int32)
            if last > start:
                kept = drawn[max(0, start - first) : last - first]
                out[max(start, first) - start : last - start] = torch.from_numpy(kept)
    return out


def keep(values: torch.Tensor, probability: float | torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """`values` with each entry kept with its probability, else set to 0; overwrites `values`.

    `probability`: one for all, or a tensor in the shape of `values`; `drawn`: what `bits` gave for these entries.
    """
    drawn = drawn.view(values.shape).to(values.device)
    kept = SCRATCH.like("kept", values, torch.bool)
    if isinstance(probability, torch.Tensor):
        limit = (probability * (2 * _HALF)).round_().sub_(_HALF).clamp_(max=_HALF - 1)
        torch.lt(drawn, limit.to(torch.int32), out=kept)
    else:
        below = round(probability * 2 * _HALF) - _HALF
        if below >= _HALF:
            return values
        torch.lt(drawn, below, out=kept)
    # A product is several times faster than a masked fill at random places.
    return values.mul_(kept.view(torch.uint8))
