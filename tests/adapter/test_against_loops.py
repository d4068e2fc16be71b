"""Adapters against their oracle, which is written from the formulas alone."""

from __future__ import annotations

from typing import Any

import loops_lora as lora
import loops_spectral as spectral
import numpy as np
import pytest
import torch

from fusion_bench import TaskArithmetic, WeightedAverage
from fusion_bench.adapter import fuse_adapters
from fusion_bench.method import method_class, method_modules

SHAPES = [(1, 1), (7, 6), (5, 1), (1, 4), (3, 9), (20, 11)]
RANKS = [[1], [2, 2], [3, 1, 2], [2, 2, 2, 2]]


def made(workshop: Any, shape: tuple[int, int], ranks: list[int], seed: int) -> tuple[Any, list[lora.Adapter]]:
    rng = np.random.default_rng(seed)
    base = workshop.base(layer=shape)
    members, oracles = [], []
    for number, rank in enumerate(ranks):
        up, down = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
        if number == 2:
            up, down = -oracles[0].up, oracles[0].down  # the opposite of another
            rank = up.shape[1]
        stabilised = bool(number % 2)
        members.append(workshop.lora(base, {"layer": (up, down)}, r=rank, lora_alpha=3.0, use_rslora=stabilised))
        oracles.append(lora.Adapter(up, down, lora.scaling(3.0, rank, stabilised)))
    return workshop.pool(base, *members), oracles


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", RANKS)
def test_weighted_sums(workshop: Any, tools: Any, shape: tuple[int, int], ranks: list[int]) -> None:
    pool, oracles = made(workshop, shape, ranks, 1)
    weights = [1.5, -0.5, 0.25, 2.0][: len(ranks)]
    expected = torch.as_tensor(lora.weighted_sum(oracles, weights))
    for space in ("auto", "core", "knots"):
        method = WeightedAverage(weights=tuple(weights), normalize=False)
        found = tools.change(fuse_adapters(method, pool, space=space), "layer.weight")
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    expected = torch.as_tensor(lora.knots([lora.dense(o) for o in oracles], lambda parts: 0.3 * sum(parts)))
    found = tools.change(fuse_adapters(TaskArithmetic(), pool, space="knots"), "layer.weight")
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("ranks", [[2, 2], [2, 2, 2, 2]])
@pytest.mark.parametrize("key", sorted({"tsv_merging", "iso_c"} & set(method_modules())))
def test_spectral(workshop: Any, tools: Any, ranks: list[int], key: str) -> None:
    pool, oracles = made(workshop, (20, 11), ranks, 2)
    pool = type(pool)(models={n: m for n, m in pool.models.items() if n != "m2"}, base=pool.base)
    oracles = [oracle for number, oracle in enumerate(oracles) if number != 2]
    merge = {"tsv_merging": spectral.tsvm, "iso_c": spectral.iso_c}[key]
    expected = torch.as_tensor(lora.core_space(oracles, merge))
    found = tools.change(fuse_adapters(method_class(key)(), pool), "layer.weight")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.norm()))


@pytest.mark.parametrize("space", ["core", "knots"])
def test_element_wise_methods_see_the_same_small_matrices(workshop: Any, tools: Any, space: Any) -> None:
    """MagMax is the plainest method whose result depends on the space: both agree but for the signs of directions."""
    if "magmax" not in method_modules():
        pytest.skip("no such method")
    pool, oracles = made(workshop, (20, 11), [2, 3], 3)

    def magmax(matrices: list[Any]) -> Any:
        stacked = np.stack(matrices)
        return np.take_along_axis(stacked, np.abs(stacked).argmax(0)[None], 0)[0]

    expected = (
        lora.core_space(oracles, magmax)
        if space == "core"
        else lora.knots([lora.dense(oracle) for oracle in oracles], magmax)
    )
    method = method_class("magmax")(scaling_factor=1.0)
    found = tools.change(fuse_adapters(method, pool, space=space), "layer.weight")
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-9, atol=1e-9)


def test_gates(workshop: Any) -> None:
    rng = np.random.default_rng(4)
    base = workshop.base(k=(5, 3), v=(4, 3))
    gates = [{"k": 0.5 + rng.random(5), "v": 0.5 + rng.random(4)}, {"k": 0.5 + rng.random(5)}, {"v": rng.random(4)}]
    pool = workshop.pool(base, *(workshop.ia3(base, each) for each in gates))
    weights = [0.7, -0.2, 1.1]
    expected = lora.ia3_arithmetic(gates, weights)
    method = WeightedAverage(weights=tuple(weights), normalize=False)
    found = fuse_adapters(method, pool).vectors
    for name in ("k", "v"):
        torch.testing.assert_close(
            found[f"{name}.weight"].factor.reshape(-1), torch.as_tensor(expected[name]), rtol=1e-12, atol=1e-12
        )
