"""Singular values that count what tasks share once."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fusion_bench.ops import spectral

# A task with less energy in a direction says nothing of it.
_ENERGY = 1e-12


def correction(merged: torch.Tensor, deltas: Iterable[torch.Tensor], alpha: float, exact: bool) -> torch.Tensor:
    r"""$U \mathrm{diag}(\sigma (\gamma - 1)) V^\top$ of the merged $U \mathrm{diag}(\sigma) V^\top$, in float64.

    $\gamma_r = N / \sum_i \max(\alpha, s_{ri})$ with $s_{ri} = \langle u_r^\top \Delta, u_r^\top \tau_i \rangle /
    \|u_r^\top \tau_i\|^2$.
    """
    found = spectral.factors(merged, exact=exact)
    divisor = torch.zeros_like(found.values)
    count = 0
    for delta in deltas:
        count += 1
        theirs = spectral.product(delta.T, found.left)
        energy = theirs.square().sum(0)
        shares = found.values * theirs.mul_(found.right).sum(0) / torch.where(energy < _ENERGY, 1.0, energy)
        divisor += torch.where(energy < _ENERGY, alpha, shares.clamp(min=alpha))
    return spectral.rebuilt(found._replace(values=found.values * (count / divisor - 1)))
