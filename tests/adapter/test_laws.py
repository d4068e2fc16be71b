"""Laws of fused adapters: what the space of the factors must not change, and what an adapter alone must stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_bench import SimpleAverage, TaskArithmetic, TiesMerging, WeightedAverage, fuse
from fusion_bench.adapter import extract_adapter, fuse_adapters
from fusion_bench.adapter.core import _frame
from fusion_bench.adapter.fuse import check
from fusion_bench.errors import ConfigError, NonFiniteError
from fusion_bench.method import method_class, method_modules
from fusion_bench.method.base import TensorMethod

NAMES = ["one.weight", "two.weight"]
SPECTRAL = [key for key in ("tsv_merging", "iso_c") if key in method_modules()]


def bases(workshop: Any) -> Any:
    return workshop.base(one=(12, 10), two=(9, 14))


@pytest.mark.parametrize("ranks", [[2], [2, 2, 2], [1, 3, 2], [4, 4, 4, 4]])
@pytest.mark.parametrize("space", ["auto", "core", "knots"])
def test_linear_methods_are_the_dense_result(workshop: Any, tools: Any, ranks: list[int], space: Any) -> None:
    """L35, with mixed ranks, negative weights and scalings; ranks add up to more than the layer has."""
    base = bases(workshop)
    pool = workshop.drawn(base, ranks, ["one", "two"], scales=[2.0, 0.5, 1.0, 3.0][: len(ranks)])
    methods = [SimpleAverage(), TaskArithmetic(scaling_factor=-0.7)]
    if len(ranks) == 3:
        methods.append(WeightedAverage(weights=(1.5, -1.0, 0.5)))
    for method in methods:
        adapter = fuse_adapters(method, pool, space=space)
        for name in NAMES:
            torch.testing.assert_close(
                tools.change(adapter, name), tools.dense(pool, method, name), rtol=1e-11, atol=1e-11
            )
            if space == "auto":
                assert adapter.ranks[name] == sum(ranks)
        assert adapter.share == pytest.approx(1.0, abs=1e-12)


def test_cores_share_singular_values(workshop: Any) -> None:
    base = bases(workshop)
    pool = workshop.drawn(base, [2, 3], ["one", "two"], scales=[2.0, 0.5])
    members, way, _ = check(TiesMerging(), pool)
    assert way == "core"
    frame = _frame(members, "one.weight")
    torch.testing.assert_close(frame.left.t() @ frame.left, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(frame.right @ frame.right.t(), torch.eye(5, dtype=torch.float64))
    for model, core in frame.cores.items():
        delta = pool.models[model]["one.weight"] - base["one.weight"]
        torch.testing.assert_close(frame.left @ core @ frame.right, delta, rtol=1e-11, atol=1e-11)
        values = torch.linalg.svdvals(core)
        torch.testing.assert_close(values, torch.linalg.svdvals(delta)[:5], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("key", SPECTRAL)
def test_spectral_methods_do_not_notice_the_core(workshop: Any, tools: Any, key: str) -> None:
    """L35: TSV-M and Iso-C in the core are the dense results with null directions dropped (equal ranks)."""
    base = bases(workshop)
    pool = workshop.drawn(base, [2, 2, 2], ["one", "two"])
    method = method_class(key)()
    adapter = fuse_adapters(method, pool)
    for name in NAMES:
        expected = tools.dense(pool, method, name)
        torch.testing.assert_close(tools.change(adapter, name), expected, rtol=1e-9, atol=1e-9 * float(expected.norm()))


def tensor_methods() -> list[str]:
    """Every merging method that runs with its defaults on any pool."""
    return [
        key
        for key in method_modules()
        if issubclass(method_class(key), TensorMethod) and not method_class(key).per_task
    ]


@pytest.mark.parametrize("space", ["core", "knots"])
@pytest.mark.parametrize("key", tensor_methods())
def test_every_method_runs_in_the_factors(workshop: Any, tools: Any, key: str, space: Any) -> None:
    """Any method gives an adapter whose rank is at most the sum of ranks, in the span of the members' factors."""
    base = bases(workshop)
    pool = workshop.drawn(base, [2, 1], ["one", "two"])
    try:
        adapter = fuse_adapters(method_class(key)(), pool, space=space)
    except ConfigError as error:
        pytest.skip(f"not with its defaults on two models: {error}")
    for name in NAMES:
        found = tools.change(adapter, name)
        assert torch.isfinite(found).all()
        stacked = torch.cat([pool.models[m].delta(name).B for m in pool.models], dim=1)
        left = torch.linalg.qr(stacked)[0]
        torch.testing.assert_close(left @ (left.t() @ found), found, rtol=1e-6, atol=1e-6)
        assert adapter.ranks[name] <= 3


@pytest.mark.parametrize("method", [SimpleAverage(), TaskArithmetic(scaling_factor=1.0)])
@pytest.mark.parametrize("space", ["auto", "core", "knots"])
def test_one_adapter_is_itself(workshop: Any, tools: Any, method: Any, space: Any) -> None:
    """L63: plain, rank-stabilised, with patterns of rank and alpha."""
    base = bases(workshop)
    draw = torch.Generator().manual_seed(0)

    def pair(out: int, rank: int, width: int) -> Any:
        return torch.randn(out, rank, generator=draw), torch.randn(rank, width, generator=draw)

    pairs = {"one": pair(12, 3, 10), "two": pair(9, 2, 14)}
    config = {"r": 3, "lora_alpha": 7, "rank_pattern": {"two": 2}, "alpha_pattern": {"one": 5}}
    for stabilised in (False, True):
        member = workshop.lora(base, pairs, use_rslora=stabilised, **config)
        adapter = fuse_adapters(method, workshop.pool(base, member), space=space)
        assert adapter.ranks == {"one.weight": 3, "two.weight": 2}
        for name in NAMES:
            expected = member[name] - base[name]
            torch.testing.assert_close(tools.change(adapter, name), expected, rtol=1e-11, atol=1e-11)


def test_a_module_of_one_adapter_keeps_that_change(workshop: Any, tools: Any) -> None:
    """The others count as zero there; tensors that none touches are not in the adapter."""
    base = workshop.base(one=(12, 10), two=(9, 14), three=(4, 4))
    pairs = {"one": (torch.randn(12, 2), torch.randn(2, 10)), "two": (torch.randn(9, 2), torch.randn(2, 14))}
    both = workshop.lora(base, pairs)
    single = workshop.lora(base, {"one": pairs["one"]})
    pool = workshop.pool(base, both, single)
    for space in ("auto", "core", "knots"):
        adapter = fuse_adapters(TaskArithmetic(scaling_factor=1.0), pool, space=space)
        assert set(adapter.factors) == {"one.weight", "two.weight"}
        expected = both["two.weight"] - base["two.weight"]
        torch.testing.assert_close(tools.change(adapter, "two.weight"), expected, rtol=1e-11, atol=1e-11)
    averaged = fuse_adapters(SimpleAverage(), pool)
    torch.testing.assert_close(tools.change(averaged, "two.weight"), expected / 2, rtol=1e-11, atol=1e-11)


def test_rank_is_the_best_approximation(workshop: Any, tools: Any) -> None:
    base = bases(workshop)
    pool = workshop.drawn(base, [3, 3], ["one", "two"])
    method = TaskArithmetic(scaling_factor=1.0)
    for space in ("auto", "core", "knots", "dense"):
        adapter = fuse_adapters(method, pool, space=space, rank=2)
        for name in NAMES:
            whole = tools.dense(pool, method, name)
            values = torch.linalg.svdvals(whole)
            lost = float((tools.change(adapter, name) - whole).square().sum())
            assert lost == pytest.approx(float(values[2:].square().sum()), rel=1e-9)
            assert adapter.kept[name] == pytest.approx(float(values[:2].square().sum() / values.square().sum()))
            assert adapter.ranks[name] == 2
        assert any(f"keeps {adapter.share:.1%}" in remark for remark in adapter.remarks)


def test_rank_as_a_share(workshop: Any) -> None:
    pool = workshop.drawn(bases(workshop), [3, 3], ["one", "two"])
    for share in (0.3, 0.8, 0.999):
        adapter = fuse_adapters(TaskArithmetic(), pool, rank=share)
        assert all(kept >= share for kept in adapter.kept.values())
        less = [fuse_adapters(TaskArithmetic(), pool, rank=rank - 1).kept[name] for name, rank in adapter.ranks.items()
                if rank > 1]  # fmt: skip
        assert all(kept < share for kept in less)
    assert set(fuse_adapters(TaskArithmetic(), pool, rank=1.0).ranks.values()) == {6}


def test_nothing_changes_at_factor_zero(workshop: Any, tools: Any) -> None:
    pool = workshop.drawn(bases(workshop), [2, 2], ["one", "two"])
    for space in ("auto", "core", "knots"):
        adapter = fuse_adapters(TaskArithmetic(scaling_factor=0.0), pool, space=space)
        assert all(not tools.change(adapter, name).any() for name in NAMES)
        assert adapter.share == 1.0
        assert set(adapter.ranks.values()) == {1}


def test_zero_and_tiny_adapters(workshop: Any, tools: Any) -> None:
    """A fresh adapter is zero; one that is smaller by far than another is not lost beside it."""
    base = workshop.base(one=(12, 10))
    large = workshop.lora(base, {"one": (torch.randn(12, 2) * 1e4, torch.randn(2, 10))})
    small = workshop.lora(base, {"one": (torch.randn(12, 2) * 1e-5, torch.randn(2, 10))})
    fresh = workshop.lora(base, {"one": (torch.zeros(12, 2), torch.randn(2, 10))})
    zero = workshop.lora(base, {"one": (torch.zeros(12, 2), torch.zeros(2, 10))})
    for space in ("auto", "core"):
        weights = WeightedAverage(weights=(0.0, 1.0, 1.0, 1.0), normalize=False)
        adapter = fuse_adapters(weights, workshop.pool(base, large, small, fresh, zero), space=space)
        expected = small.delta("one.weight")
        torch.testing.assert_close(tools.change(adapter, "one.weight"), expected.B @ expected.A, rtol=1e-5, atol=1e-11)
    for space in ("auto", "core", "knots"):
        adapter = fuse_adapters(SimpleAverage(), workshop.pool(base, fresh, zero), space=space)
        assert not tools.change(adapter, "one.weight").any()


def test_threads_change_nothing(workshop: Any) -> None:
    pool = workshop.drawn(bases(workshop), [2, 3], ["one", "two"])
    for how in ({"space": "core"}, {"space": "knots"}, {"space": "dense", "rank": 3}):
        one, three = (fuse_adapters(TiesMerging(), pool, threads=threads, **how) for threads in (1, 3))
        for name in NAMES:
            assert torch.equal(one.factors[name].A, three.factors[name].A)
            assert torch.equal(one.factors[name].B, three.factors[name].B)


def test_gates_missing_and_neutral(workshop: Any) -> None:
    """One adapter alone stays; a neutral one, or one without the module, changes nothing with any weight."""
    base = workshop.base(k=(4, 3), wo=(3, 5))
    only = workshop.ia3(base, {"k": [1.2, 0.8, 1.0, 2.0], "wo": [0.5, 1, 1, 1, 3]}, forward=("wo",))
    alone = fuse_adapters(SimpleAverage(), workshop.pool(base, only))
    assert alone.vectors["wo.weight"].factor.shape == (1, 5)
    for name in ("k.weight", "wo.weight"):
        torch.testing.assert_close(base[name] * alone.vectors[name].factor, only[name], rtol=1e-14, atol=0)
    neutral = workshop.ia3(base, {"k": torch.ones(4), "wo": torch.ones(5)}, forward=("wo",))
    without = workshop.ia3(base, {"wo": torch.ones(5)}, forward=("wo",))
    for other in (neutral, without):
        method = WeightedAverage(weights=(1.0, -7.0), normalize=False)
        both = fuse_adapters(method, workshop.pool(base, only, other))
        torch.testing.assert_close(both.vectors["k.weight"].factor, alone.vectors["k.weight"].factor)


def test_gates_average_as_folded_weights(workshop: Any) -> None:
    base = workshop.base(k=(4, 3))
    members = [workshop.ia3(base, {"k": torch.rand(4) + 0.5}) for _ in range(3)]
    pool = workshop.pool(base, *members)
    folded = fuse(SimpleAverage(), {m: pool.models[m] for m in pool.models}, base=base)
    adapter = fuse_adapters(SimpleAverage(), pool)
    torch.testing.assert_close(base["k.weight"] * adapter.vectors["k.weight"].factor, folded["k.weight"])


def test_extraction_inverts_the_fold(workshop: Any, tools: Any) -> None:
    base = bases(workshop)
    member = workshop.drawn(base, [3], ["one", "two"]).models["m0"]
    adapter = extract_adapter(member, base, rank=5)
    assert set(adapter.ranks.values()) == {3}
    for name in NAMES:
        expected = member[name] - base[name]
        torch.testing.assert_close(tools.change(adapter, name), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"rank": 0}, "expected 1 to 10"),
        ({"rank": 11}, "expected 1 to 10"),
        ({"rank": 1.5}, "share above 0"),
        ({"rank": 0.0}, "share above 0"),
        ({"space": "dense"}, "needs a rank"),
    ],
)
def test_refusals(workshop: Any, how: Any, words: str) -> None:
    pool = workshop.drawn(bases(workshop), [2, 2], ["one", "two"])
    with pytest.raises(ConfigError, match=words):
        fuse_adapters(SimpleAverage(), pool, **how)


def test_refused_pools(workshop: Any) -> None:
    from fusion_bench import ModelPool
    from fusion_bench.method.merging.dummy import Dummy

    base, other = bases(workshop), bases(workshop)
    pool = workshop.drawn(base, [2, 2], ["one", "two"])
    with pytest.raises(ConfigError, match="has none"):
        fuse_adapters(SimpleAverage(), ModelPool(models=dict(pool.models)))
    stranger = workshop.drawn(other, [2], ["one"]).models["m0"]
    with pytest.raises(ConfigError, match="m1: adapters over another base"):
        fuse_adapters(SimpleAverage(), workshop.pool(base, pool.models["m0"], stranger))
    with pytest.raises(ConfigError, match="not make one model tensor by tensor"):
        fuse_adapters(Dummy(), pool)
    gates = workshop.ia3(base, {"one": torch.ones(12)})
    mixed = workshop.pool(base, pool.models["m0"], gates)
    with pytest.raises(ConfigError, match="mixes LoRA"):
        fuse_adapters(SimpleAverage(), mixed)
    with pytest.raises(ConfigError, match="adapter_space=core"):
        fuse_adapters(SimpleAverage(), mixed, space="core")
    with pytest.raises(ConfigError, match="have no rank"):
        fuse_adapters(SimpleAverage(), workshop.pool(base, gates), rank=2)
    with pytest.raises(ConfigError, match="'m0' is no adapter"):
        fuse_adapters(SimpleAverage(), workshop.pool(base, other))
    with pytest.raises(ConfigError, match="equals the base"):
        fuse_adapters(SimpleAverage(), workshop.pool(base, other), rank=1)
    opposite = workshop.ia3(base, {"one": torch.ones(10)}, forward=("one",))
    with pytest.raises(ConfigError, match="scales the inputs"):
        fuse_adapters(SimpleAverage(), workshop.pool(base, gates, opposite))
    whole = fuse_adapters(TaskArithmetic(scaling_factor=1.0), mixed, rank=1.0)
    assert set(whole.factors) == {"one.weight", "two.weight"}


def test_nan_is_refused_by_name(workshop: Any) -> None:
    base = workshop.base(one=(4, 3))
    good = workshop.lora(base, {"one": (torch.ones(4, 1), torch.ones(1, 3))})
    bad = workshop.lora(base, {"one": (torch.full((4, 1), float("nan")), torch.ones(1, 3))})
    for how in ({}, {"space": "core"}, {"space": "knots"}, {"space": "dense", "rank": 1}):
        with pytest.raises(NonFiniteError, match=r"m1|one"):
            fuse_adapters(SimpleAverage(), workshop.pool(base, good, bad), **how)
    gates = workshop.ia3(base, {"one": [1.0, float("inf"), 1.0, 1.0]})
    with pytest.raises(NonFiniteError, match="m0"):
        fuse_adapters(SimpleAverage(), workshop.pool(base, gates))
    with pytest.raises(NonFiniteError, match="one"):
        extract_adapter(bad, base, rank=1)
