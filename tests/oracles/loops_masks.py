"""Selection, per-task masks and the small extras, told again one coordinate at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from loops import Deltas, Model, delta
from loops_common import added, flat, shaped, sign, summed

Masks = dict[str, list[int]]


def magmax(models: Sequence[Model], base: Model, *, scaling_factor: float = 1.0) -> dict[str, np.ndarray]:
    """Per coordinate the change of largest magnitude, of equal ones the later: MagMax, arXiv 2407.06322."""
    merged: Deltas = {}
    changes = [delta(model, base) for model in models]
    for name in base:
        merged[name] = []
        for j in range(base[name].size):
            chosen = 0.0
            for change in changes:
                if abs(change[name][j]) >= abs(chosen):
                    chosen = change[name][j]
            merged[name].append(chosen)
    return added(base, merged, scaling_factor)


def tall_masks(
    models: Sequence[Model], base: Model, *, mask_scales: Sequence[float], merged: Deltas | None = None
) -> list[Masks]:
    """[|τi| > λ_t·|τ_mt − τi|], strictly, with τ_mt = Σ τi unless given: TALL-masks, Wang et al., arXiv 2405.07813."""
    changes = [delta(model, base) for model in models]
    multi = summed(changes) if merged is None else merged
    out: list[Masks] = []
    for change, scale in zip(changes, mask_scales, strict=True):
        mask: Masks = {}
        for name in base:
            mask[name] = []
            for own, shared in zip(change[name], multi[name], strict=True):
                mask[name].append(int(abs(own) > scale * abs(shared - own)))
        out.append(mask)
    return out


def masked(change: Deltas, mask: Masks) -> Deltas:
    """m⊙τ."""
    return {
        name: [entry if keep else 0.0 for entry, keep in zip(change[name], mask[name], strict=True)] for name in change
    }


def tall(
    models: Sequence[Model], base: Model, *, mask_scales: Sequence[float], scaling_factor: float = 1.0
) -> list[dict[str, np.ndarray]]:
    """Task i runs θ0 + λ·mask_i⊙τ_mt: TALL-masks, arXiv 2405.07813 (λ = 1)."""
    multi = summed([delta(model, base) for model in models])
    masks = tall_masks(models, base, mask_scales=mask_scales)
    return [added(base, masked(multi, mask), scaling_factor) for mask in masks]


def consensus(
    models: Sequence[Model], base: Model, *, k: int, mask_scales: Sequence[float], scaling_factor: float = 1.0
) -> dict[str, np.ndarray]:
    """τ_mt where at least k tasks have a mask: Consensus Task Arithmetic, arXiv 2405.07813."""
    masks = tall_masks(models, base, mask_scales=mask_scales)
    votes: Masks = {}
    for name in base:
        votes[name] = []
        for j in range(base[name].size):
            count = 0
            for mask in masks:
                count += mask[name][j]
            votes[name].append(int(count >= k))
    return added(base, masked(summed([delta(model, base) for model in models]), votes), scaling_factor)


def emr_parts(models: Sequence[Model], base: Model) -> tuple[Deltas, list[Masks], list[float]]:
    """The unified vector τ_u, the masks M_i and the rescalers s_i of EMR-Merging, Huang et al., arXiv 2405.17461.

    γ = sign(Σ τi), 0 → −1; τ_u = γ·max|τi| over those with τi·γ > 0; M_i = [τi·γ > 0]; s_i is the sum over tensors of
    mean|τi| over the sum over tensors of mean|M_i⊙τ_u|, and 1 where the latter is 0.
    """
    changes = [delta(model, base) for model in models]
    unified: Deltas = {}
    masks: list[Masks] = [{} for _ in models]
    for name in base:
        unified[name] = []
        for mask in masks:
            mask[name] = []
        for j in range(base[name].size):
            total = 0.0
            for change in changes:
                total += change[name][j]
            elected = 1 if total > 0.0 else -1
            largest = 0.0
            for change, mask in zip(changes, masks, strict=True):
                agrees = sign(change[name][j]) == elected
                mask[name].append(int(agrees))
                if agrees:
                    largest = max(largest, abs(change[name][j]))
            unified[name].append(elected * largest)
    rescalers: list[float] = []
    for change, mask in zip(changes, masks, strict=True):
        own, ours = 0.0, 0.0
        shared = masked(unified, mask)
        for name in base:
            own += sum(abs(entry) for entry in change[name]) / len(change[name])
            ours += sum(abs(entry) for entry in shared[name]) / len(shared[name])
        rescalers.append(own / ours if ours > 0.0 else 1.0)
    return unified, masks, rescalers


def emr(models: Sequence[Model], base: Model) -> list[dict[str, np.ndarray]]:
    """Task i runs θ0 + s_i·M_i⊙τ_u: EMR-Merging, arXiv 2405.17461."""
    unified, masks, rescalers = emr_parts(models, base)
    return [added(base, masked(unified, mask), scale) for mask, scale in zip(masks, rescalers, strict=True)]


def nearswap(model: Model, base: Model, *, t: float) -> dict[str, np.ndarray]:
    """w·b + (1−w)·a with w = clip(t/|a−b|, 0, 1), a the base: mergekit's nearswap; equal entries stay."""
    merged: Deltas = {}
    for name in base:
        merged[name] = []
        for a, b in zip(flat(base[name]), flat(model[name]), strict=True):
            gap = abs(a - b)
            weight = min(max(t / gap, 0.0), 1.0) if gap > 0.0 else 0.0
            merged[name].append(weight * b + (1.0 - weight) * a)
    return shaped(merged, base)


def ram(models: Sequence[Model], base: Model, *, threshold: float = 1e-5) -> dict[str, np.ndarray]:
    """The mean over the experts that changed an entry by more than `threshold`: RAM, arXiv 2601.13572.

    So an entry that one expert changed is added as it is, and one that several changed is averaged over those alone.
    """
    changes = [delta(model, base) for model in models]
    merged: Deltas = {}
    for name in base:
        merged[name] = []
        for j in range(base[name].size):
            total, count = 0.0, 0
            for change in changes:
                if abs(change[name][j]) > threshold:
                    total += change[name][j]
                    count += 1
            merged[name].append(total / count if count else 0.0)
    return added(base, merged)


def expo(model: Model, base: Model, *, beta: float) -> dict[str, np.ndarray]:
    """θ1 + β(θ1 − θ0): ExPO, Zheng et al., arXiv 2404.16792."""
    change = delta(model, base)
    return added({name: model[name] for name in base}, change, beta)


def passthrough(model: Model, *, scale: float) -> dict[str, np.ndarray]:
    """scale·θ, mergekit's passthrough."""
    return shaped({name: [scale * entry for entry in flat(model[name])] for name in model}, model)


def negation(model: Model, base: Model, *, scaling_factor: float = 1.0) -> dict[str, np.ndarray]:
    """θ0 − λτ: forgetting by negation, Ilharco et al., arXiv 2212.04089."""
    return added(base, delta(model, base), -scaling_factor)


def lines_factor(block: int | None, count: int, alpha: float, beta: float) -> float:
    """α + β·l/(L−1) for block l, α outside the blocks, α + β for a single block: LiNeS, arXiv 2410.17146."""
    if block is None:
        return alpha
    return alpha + beta * (block / (count - 1) if count > 1 else 1.0)


def lines(
    merged: Model, base: Model, *, alpha: float, beta: float, blocks: Mapping[str, int | None], count: int
) -> dict[str, np.ndarray]:
    """LiNeS (Wang et al., arXiv 2410.17146) on a merged model; `blocks` names the block of every tensor."""
    change = delta(merged, base)
    scaled: Deltas = {}
    for name in base:
        factor = lines_factor(blocks[name], count, alpha, beta)
        scaled[name] = [factor * entry for entry in change[name]]
    return added(base, scaled)


def lines_alpha(models: Sequence[Model], base: Model, merged: Deltas) -> float:
    """(‖Σ τi‖₁/‖Δ‖₁)/N over the whole model, the α of LiNeS (arXiv 2410.17146) for merging; Δ without its λ."""
    total = summed([delta(model, base) for model in models])
    ours = sum(abs(entry) for name in base for entry in merged[name])
    return sum(abs(entry) for name in base for entry in total[name]) / ours / len(models)
