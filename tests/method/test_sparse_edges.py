"""Methods that sparsify, select or mask where there is nothing to keep, and where tensors span slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_bench import (
    Breadcrumbs,
    Consensus,
    Dare,
    Della,
    EmrMerging,
    Magmax,
    PcbMerging,
    Sce,
    TallMask,
    TiesMerging,
    fuse,
)  # fmt: skip
from fusion_bench.checkpoint.memory import MemoryCheckpoint


@pytest.mark.parametrize(
    "method",
    [
        Dare(rescale_mode="l1"),
        Della(rescale_mode="l1"),
        Della(),
        Breadcrumbs(density=0.0),
        Breadcrumbs(gamma=1.0),
        Sce(select_topk=0.5),
        PcbMerging(),
        EmrMerging(),
        TallMask(),
        Consensus(),
        Magmax(),
    ],
)
def test_empty_and_unchanged_tensors(method: Any) -> None:
    """Nothing to divide by: no entries, no changes, a model without any change."""
    shapes: dict[str, tuple[int, ...]] = {"n": (0, 4), "m": (4, 0), "o": (0,), "w": (3, 5), "s": (), "one": (1,)}
    base = {name: torch.ones(shape) for name, shape in shapes.items()}
    changed = {name: tensor + (0.5 if name == "w" else 0.0) for name, tensor in base.items()}
    for models in ([base, base], [base, changed], [changed, base, changed]):
        merged = fuse(method, models, base)
        for state in merged.values() if method.per_task else [merged]:
            assert all(torch.isfinite(tensor).all() for tensor in state.values())
            assert all(torch.equal(state[name], base[name]) for name in base if name != "w")
    only = {name: base[name] for name in "nmo"}
    merged = fuse(method, [only, only], only)
    for state in merged.values() if method.per_task else [merged]:
        assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in only.items()}


@pytest.mark.parametrize(
    "method",
    [
        Della(),
        Della(rescale_mode="l1", inner=TiesMerging()),
        Dare(inner=TiesMerging(scope="tensor")),
        Breadcrumbs(inner=TiesMerging()),
        Breadcrumbs(inner=Della()),
        Sce(select_topk=0.5),
    ],
)
def test_reads_of_any_size_give_the_same_bytes(method: Any) -> None:
    """L7 where tensors span slices: rows, whole tensors, thresholds inside thresholds, on one thread and on three."""
    generator = torch.Generator().manual_seed(2)
    shapes: dict[str, tuple[int, ...]] = {"k": (300, 70, 70), "w": (1500, 900), "v": (1_200_000,), "b": (70,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    models = {
        name: {key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in base.items()}
        for name in "ab"
    }
    opened = {name: MemoryCheckpoint(state) for name, state in models.items()}
    one, three = (fuse(method, opened, MemoryCheckpoint(base), threads=threads) for threads in (1, 3))
    for name, tensor in base.items():
        whole = one[name].reshape(-1)
        assert torch.equal(three[name].reshape(-1), whole)
        steps = range(0, tensor.numel(), 400_001)
        cut = torch.cat([three.read(name, start, min(start + 400_001, tensor.numel())) for start in steps])
        assert torch.equal(cut, whole)
