"""Inner products of long vectors, summed in float64 block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusion_bench.ops.scratch import SCRATCH

# Entries that are widened to float64 at once: fixed, since another number would be another order of summation, and few
# enough for the cache.
_BLOCK = 2**14


def gram(vectors: Sequence[torch.Tensor], mix: torch.Tensor | None = None) -> torch.Tensor:
    """$G_{ij} = \\langle x_i, x_j \\rangle$ of N tensors of one shape, as N x N float64; zeros for empty tensors.

    With `mix` (M x N, float64) the M x M products of the combinations $\\sum_j m_{ij} x_j$: formed entry by entry, so
    the norm of a sum that nearly cancels stays exact to rounding, which it would not be out of the Gram matrix.
    """
    flat = [vector.reshape(-1) for vector in vectors]
    count, device = len(flat), flat[0].device
    size = count if mix is None else mix.shape[0]
    out = torch.zeros(size, size, dtype=torch.float64, device=device)
    for start in range(0, flat[0].numel(), _BLOCK):
        stop = min(start + _BLOCK, flat[0].numel())
        block = SCRATCH.take("gram", count * (stop - start), torch.float64, device).view(count, stop - start)
        for row, vector in zip(block, flat, strict=True):
            row.copy_(vector[start:stop])
        mixed = block if mix is None else mix.to(device) @ block
        out.addmm_(mixed, mixed.T)
    return out


def row_grams(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """The Gram matrix of each row: N matrices of R x W give R x N x N in float64."""
    rows, width = matrices[0].shape
    count, device = len(matrices), matrices[0].device
    if width > _BLOCK:
        return torch.stack([gram([matrix[row] for matrix in matrices]) for row in range(rows)])
    out = torch.zeros(rows, count, count, dtype=torch.float64, device=device)
    step = max(1, _BLOCK // max(1, width))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        block = SCRATCH.take("gram", (last - first) * count * width, torch.float64, device)
        block = block.view(last - first, count, width)
        for place, matrix in enumerate(matrices):
            block[:, place].copy_(matrix[first:last])
        torch.bmm(block, block.transpose(1, 2), out=out[first:last])
    return out


def column_grams(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """The Gram matrix of each column: N matrices of R x W give W x N x N in float64."""
    rows, width = matrices[0].shape
    count, device = len(matrices), matrices[0].device
    out = torch.zeros(count, count, width, dtype=torch.float64, device=device)
    step = max(1, _BLOCK // max(1, width))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        block = SCRATCH.take("gram", count * (last - first) * width, torch.float64, device)
        block = block.view(count, last - first, width)
        for place, matrix in enumerate(matrices):
            block[place].copy_(matrix[first:last])
        for i in range(count):
            for j in range(i + 1):
                out[i, j].add_((block[i] * block[j]).sum(0))
    for i in range(count):
        for j in range(i):
            out[j, i] = out[i, j]
    return out.permute(2, 0, 1)
