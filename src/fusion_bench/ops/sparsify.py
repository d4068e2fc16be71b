"""Which entries of task vectors are kept: chances by rank, spread over the models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from fusion_bench.ops.scratch import SCRATCH


def keep_probabilities(rows: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    r"""$p = d - \epsilon + 2 \epsilon \frac{r - 1}{n - 1}$ with the rank r = 1 … n of a magnitude in its row.

    `rows`: rows x n; r = n is the largest, of equal magnitudes the first counts as the larger. A row of one entry has
    the probability d. In float64, in the shape of `rows`.
    """
    width = rows.shape[1]
    if width == 1:
        return torch.full(rows.shape, density, dtype=torch.float64, device=rows.device)
    by_rank = density - epsilon + 2.0 * epsilon * np.arange(width) / (width - 1)
    chances = np.empty(rows.shape)
    np.put_along_axis(chances, _ascending(rows.detach().abs().cpu().numpy()), by_rank[None], axis=1)
    return torch.from_numpy(chances).to(rows.device)


def _ascending(magnitudes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The positions in each row by rising magnitude, of equal ones the later first."""
    width = magnitudes.shape[1]
    if magnitudes.dtype != np.float32:
        return np.argsort(-magnitudes, axis=1, kind="stable")[:, ::-1]
    # The bits of non-negative floats rise with them. Sorted with the position below, they take a fifth of the time.
    keys = magnitudes.view(np.int32).astype(np.int64) << 32
    keys |= np.arange(width - 1, -1, -1)
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    np.subtract(width - 1, keys, out=keys)
    return keys


class Spread:
    r"""The variance over models, entry by entry, times $N^2$, gathered while their tensors pass by.

    With $y_i = x_i - x_1$ it is $N \sum_i y_i^2 - (\sum_i y_i)^2$: exactly 0 where the models agree, and as well
    conditioned as the variance itself, since $x_1$ takes part. The tensors lie in scratch memory.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors = tensors
        self._sums: tuple[torch.Tensor, torch.Tensor] | None = None
        self._count = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The tensors as they are; each is looked at before it is handed out."""
        first: torch.Tensor | None = None
        for tensor in self._tensors:
            self._count += 1
            if first is None or self._sums is None:
                first = SCRATCH.like("first", tensor).copy_(tensor)
                self._sums = SCRATCH.like("linear", tensor).zero_(), SCRATCH.like("quadratic", tensor).zero_()
            else:
                gap = torch.sub(tensor, first, out=SCRATCH.like("gap", tensor))
                self._sums[0].add_(gap)
                self._sums[1].addcmul_(gap, gap)
            yield tensor

    def result(self) -> torch.Tensor:
        """The spread, once all tensors have passed."""
        assert self._sums is not None, "no tensors have passed"
        linear, quadratic = self._sums
        return quadratic.mul_(self._count).sub_(linear.square_()).clamp_(min=0)
