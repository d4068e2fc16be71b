"""Laws of the methods on singular vectors that the contract does not state, and what they do at their edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_bench import (
    Aswudi,
    Cart,
    IsoC,
    IsoCts,
    Lines,
    SimpleAverage,
    Svc,
    Swudi,
    TaskArithmetic,
    TsvMerging,
    Wudi,
    fuse,
)  # fmt: skip
from fusion_bench.errors import ConfigError, NonFiniteError

DELTA_METHODS: list[Any] = [TsvMerging(), IsoC(), IsoCts(), Wudi(), Swudi(), Aswudi()]
State = dict[str, torch.Tensor]


def drawn(
    count: int, shape: tuple[int, int], seed: int = 0, rank: int | None = None, dtype: Any = torch.float64
) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def one() -> torch.Tensor:
        if rank is None:
            return torch.randn(shape, generator=generator, dtype=dtype)
        left = torch.randn(shape[0], rank, generator=generator, dtype=dtype)
        return left @ torch.randn(rank, shape[1], generator=generator, dtype=dtype)

    return [one() for _ in range(count)]


def merge(method: Any, deltas: list[torch.Tensor], base: torch.Tensor | None = None) -> torch.Tensor:
    """The merged delta of one matrix."""
    start = torch.zeros_like(deltas[0]) if base is None else base
    return fuse(method, [{"w": start + delta} for delta in deltas], {"w": start})["w"] - start


def near(got: torch.Tensor, wanted: torch.Tensor, share: float = 1e-10) -> None:
    size = max(1e-30, float(torch.linalg.vector_norm(wanted)))
    assert float(torch.linalg.vector_norm(got - wanted)) <= share * size


@pytest.mark.parametrize("rank", [None, 2])
def test_one_repeated_singular_value(rank: int | None) -> None:
    """L41: the nuclear norm of the sum on one repeated value."""
    deltas = drawn(3, (9, 6), rank=rank) if rank is None else drawn(1, (9, 6), rank=rank)
    before, after = torch.linalg.svdvals(sum(deltas)), torch.linalg.svdvals(merge(IsoC(), deltas))
    kept = 6 if rank is None else rank
    torch.testing.assert_close(after[:kept], (before.sum() / kept).expand(kept))
    assert float(after[kept:].sum()) < 1e-9


def test_common_space_alone_is_iso_c() -> None:
    """L32."""
    deltas = drawn(3, (8, 5))
    near(merge(IsoCts(common_space_fraction=1.0), deltas), merge(IsoC(), deltas))
    near(merge(IsoCts(common_space_fraction=0.0), drawn(5, (4, 3))), merge(IsoC(), drawn(5, (4, 3))))


def test_rank_full_fills_null_directions() -> None:
    low = drawn(2, (6, 5), rank=1)
    values = torch.linalg.svdvals(sum(low))
    full = torch.linalg.svdvals(merge(IsoC(rank="full"), low))
    torch.testing.assert_close(full, (values.sum() / 5).expand(5))
    assert int((torch.linalg.svdvals(merge(IsoC(), low)) > 1e-9).sum()) == 2
    assert torch.isfinite(merge(IsoCts(rank="full", common_space_fraction=0.5), low)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_and_low_rank_experts(dtype: torch.dtype) -> None:
    """Equal experts are truncated (TSV-M), or kept (WUDI, SWUDI from the mean); null directions play no part."""
    share = 1e-10 if dtype == torch.float64 else 1e-5
    (matrix,) = drawn(1, (9, 6), dtype=dtype)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    near(merge(TsvMerging(), [matrix] * 2), (left[:, :3] * values[:3]) @ right[:3], share)
    (low,) = drawn(1, (9, 6), rank=2, dtype=dtype)
    for method in (TsvMerging(), Wudi(), Swudi(init="mean"), Aswudi(init="mean")):
        near(merge(method, [low] * 3), low, share)
    near(merge(TsvMerging(), [low]), low, share)


def test_orthogonal_tasks() -> None:
    """Mutually orthogonal rows and columns: the sum of the tasks."""
    left, right = (torch.linalg.qr(drawn(1, (8, 8), seed)[0])[0] for seed in (1, 2))
    first = left[:, :2] * torch.tensor([3.0, 1.0]) @ right[:, :2].T
    second = left[:, 2:4] * torch.tensor([2.0, 0.5]) @ right[:, 2:4].T
    for method in (TsvMerging(), Wudi(), Swudi(), Aswudi()):
        near(merge(method, [first, second]), first + second, 1e-8)


def test_minimum_of_the_loss() -> None:
    """L33: no gradient at the closed form with f = 1, and the descent of WUDI leads there."""
    deltas = drawn(3, (7, 5))
    best = merge(Wudi(), deltas)

    def gradient(merged: torch.Tensor) -> torch.Tensor:
        return sum(2 * (merged - d) @ d.T @ d / d.square().sum() for d in deltas)  # type: ignore[return-value]

    assert float(gradient(best).abs().max()) < 1e-10
    near(merge(Swudi(time=1e6, fraction=1.0), deltas), best)
    descended = merge(Wudi(solver="adam", iterations=3000, learning_rate=1e-2), deltas)
    near(descended, best, 1e-4)


def test_descent_is_that_of_adam() -> None:
    """Against torch's own optimiser on the loss as published, task by task."""
    deltas = drawn(3, (7, 5))
    merged = torch.nn.Parameter(sum(deltas))
    optimiser = torch.optim.Adam([merged], lr=1e-3)
    for _ in range(40):
        optimiser.zero_grad()
        loss = sum(((merged - d) @ d.T).square().sum() / d.square().sum() for d in deltas)
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()
    near(merge(Wudi(solver="adam", iterations=40, learning_rate=1e-3), deltas), merged.detach(), 1e-9)


def test_number_of_directions_by_gavish_and_donoho() -> None:
    """Two strong directions over weak ones: only the strong ones move."""
    left, right = (torch.linalg.qr(drawn(1, (20, 20), seed)[0])[0] for seed in (3, 4))
    values = torch.cat([torch.tensor([5.0, 3.0]), torch.full((18,), 0.05)]).double()
    deltas = [left * values @ right.T, 2 * left * values @ right.T]
    got = merge(Aswudi(directions="gavish_donoho", init="zero"), deltas)
    assert int((torch.linalg.svdvals(got) > 1e-9).sum()) == 2
    assert int((torch.linalg.svdvals(merge(Aswudi(init="zero"), deltas)) > 1e-9).sum()) > 2


def test_calibration() -> None:
    """L38, L45."""
    deltas = drawn(3, (8, 5))
    inner: Any = TaskArithmetic(scaling_factor=1.0)
    near(merge(Svc(inner=inner), [deltas[0]] * 3), deltas[0])
    before, after = sum(deltas), merge(Svc(inner=inner, alpha=1.0), deltas)
    left, values, right = torch.linalg.svd(before, full_matrices=False)  # type: ignore[call-overload]
    inside = left.T @ after @ right.T
    assert float((inside - inside.diag().diag()).abs().max()) < 1e-10
    assert bool((inside.diag() <= values + 1e-10).all())
    assert bool((inside.diag() > 0).all())


def test_calibration_takes_its_bound_from_the_inner_method() -> None:
    deltas = drawn(3, (8, 5))
    for inner, alpha in [("tsv_merging", 1.0), ("iso_cts", 0.2), ("iso_c", 0.1), ("task_arithmetic", 0.1)]:
        chosen: Any = inner
        near(merge(Svc(inner=chosen), deltas), merge(Svc(inner=chosen, alpha=alpha), deltas), 0)


def test_centred_low_rank() -> None:
    """L34, and λ = 0."""
    deltas = drawn(3, (8, 5))
    centre = sum(deltas) / 3
    near(merge(Cart(rank_ratio=1.0, residual_scaling=2.3), deltas), centre)
    near(merge(Cart(rank_ratio=0.5, residual_scaling=0.0), deltas), centre)
    near(merge(Cart(rank_ratio=0.5, residual_scaling=2.3), deltas[:2]), sum(deltas[:2]) / 2)
    near(merge(Cart(rank_ratio=0.5, residual_scaling=2.3), [deltas[0]] * 4), deltas[0])
    models = [{"w": delta} for delta in deltas]
    assert torch.equal(fuse(Cart(), models)["w"], fuse(Cart(), models, {"w": deltas[0] * 0})["w"])


@pytest.mark.parametrize("method", DELTA_METHODS, ids=lambda method: method.key())
def test_awkward_matrices(method: Any) -> None:
    """Zero, opposite, empty, thin: never NaN; zero task vectors change nothing; fewer directions than tasks: mean."""
    for shape in [(1, 1), (1, 5), (5, 1), (2, 7), (7, 2)]:
        deltas = drawn(3, shape)
        zero = torch.zeros(shape, dtype=torch.float64)
        assert torch.isfinite(merge(method, deltas)).all()
        assert torch.equal(merge(method, [zero] * 3), zero)
        assert torch.isfinite(merge(method, [deltas[0], zero, -deltas[0]])).all()
        assert torch.isfinite(merge(method, [1e-30 * d for d in deltas])).all()
    assert merge(method, [torch.zeros(0, 4)] * 2).shape == (0, 4)
    if isinstance(method, TsvMerging):
        near(merge(method, drawn(5, (4, 3))), sum(drawn(5, (4, 3))) / 5)


@pytest.mark.parametrize("method", [*DELTA_METHODS, Cart(), Svc()], ids=lambda method: method.key())
def test_choice_of_matrices(method: Any) -> None:
    """Embeddings are matrices for all_2d alone, text_projection never; the rest gets the mean times λ."""
    import dataclasses

    shapes = {"a.weight": (6, 5), "embed_tokens.weight": (7, 5), "text_projection": (5, 5), "b.bias": (4,)}
    generator = torch.Generator().manual_seed(0)
    pool = [{name: torch.randn(s, generator=generator).double() for name, s in shapes.items()} for _ in range(4)]
    base, models = pool[0], pool[1:]
    plain = fuse(SimpleAverage() if method.key() != "svc" else TaskArithmetic(), models, base)
    linear = fuse(method, models, base)
    everything = fuse(
        dataclasses.replace(method, matrix_keys="all_2d", **({"rank_ratio": 0.5} if method.key() == "cart" else {})),
        models,
        base,
    )
    for name in ("b.bias", "text_projection"):
        torch.testing.assert_close(linear[name], plain[name])
        torch.testing.assert_close(everything[name], plain[name])
    torch.testing.assert_close(linear["embed_tokens.weight"], plain["embed_tokens.weight"])
    assert not torch.allclose(everything["embed_tokens.weight"], plain["embed_tokens.weight"], atol=1e-3)


def test_depth_from_norms() -> None:
    """α = (‖Στi‖₁ / ‖Δ‖₁) / N over the whole model, with the inner method's factor inside Δ."""
    names = ["head.w", "h.0.w", "h.1.w"]
    base = {name: torch.zeros(4) for name in names}
    models = [{name: torch.full((4,), float(size)) for name in names} for size in (1, 3)]
    inner: Any = TaskArithmetic(scaling_factor=0.25)
    out = fuse(Lines(inner=inner, beta=2.0), models, base)
    assert [float(out[name][0]) for name in names] == pytest.approx([2.0, 2.0, 4.0])
    unchanged = fuse(Lines(inner=inner), [base, base], base)
    assert all(torch.equal(unchanged[name], base[name]) for name in names)


def test_a_single_block_counts_as_the_last() -> None:
    base = {"h.0.w": torch.zeros(2)}
    inner: Any = TaskArithmetic(scaling_factor=1.0)
    out = fuse(Lines(inner=inner, alpha=0.5, beta=0.25), [{"h.0.w": torch.ones(2)}], base)
    assert out["h.0.w"].tolist() == [0.75, 0.75]


def remarks(method: Any, names: list[str]) -> list[str]:
    from fusion_bench.api import fuse_pool
    from fusion_bench.checkpoint.memory import MemoryCheckpoint
    from fusion_bench.modelpool.base import ModelPool

    state = {name: torch.randn(4, 3) for name in names}
    pool = ModelPool({"a": MemoryCheckpoint(state)}, MemoryCheckpoint({n: torch.zeros(4, 3) for n in names}))
    fused: Any = fuse_pool(method, pool)
    return fused.checkpoint.remarks()  # type: ignore[no-any-return]


def test_remarks() -> None:
    split = ["h.0.attn.q.weight", "h.0.attn.k.weight", "h.0.attn.v.weight", "embed_tokens.weight"]
    said = remarks(TsvMerging(), split)
    assert said == [
        "3 of 4 tensors are merged as matrices (matrix_keys=linear)",
        "attention q, k, v are split into matrices of their own (3 tensors)",
    ]
    chosen: Any = "tsv_merging"
    assert remarks(Svc(inner=chosen), split) == said
    assert "fused into one matrix (1 tensors)" in remarks(IsoC(), ["h.0.attn.c_attn.weight"])[1]
    assert len(remarks(IsoC(), ["h.0.mlp.weight"])) == 1
    assert "no blocks" in remarks(Lines(), ["a.weight"])[0]
    assert "alpha is" in remarks(Lines(), ["h.0.mlp.weight", "h.1.mlp.weight"])[0]


def test_not_a_number_in_a_matrix_names_the_model() -> None:
    base = {"w": torch.zeros(4, 3)}
    bad = {"w": torch.full((4, 3), float("nan"))}
    for method in [*DELTA_METHODS, Svc(), Cart(rank_ratio=1.0)]:
        with pytest.raises(NonFiniteError, match=r"'right'.*'w'"):
            fuse(method, {"left": {"w": torch.ones(4, 3)}, "right": bad}, base)


@pytest.mark.parametrize("cls", [Svc, Lines])
def test_an_inner_method_must_give_one_model(cls: Any, tmp_path: Path) -> None:
    from fusion_bench.method import method_class, method_modules

    per_task = [key for key in method_modules() if getattr(method_class(key), "per_task", False)]
    for key in per_task:
        with pytest.raises(ConfigError, match=f"method.inner={key}"):
            fuse(cls(inner=key), [{"w": torch.ones(4, 3)}], {"w": torch.zeros(4, 3)})


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (64, 64)])
@pytest.mark.parametrize("kind", ["random", "low_rank", "steep", "noisy"])
def test_float32_stays_near_float64(shape: tuple[int, int], kind: str) -> None:
    """1e-4 of ‖Δ‖, whatever the spectrum: the faster decomposition of float32 matrices is as good as the exact one."""
    deltas = drawn(3, shape, rank=4 if kind in ("low_rank", "noisy") else None)
    if kind == "steep":
        deltas = [
            (torch.linalg.svd(d, full_matrices=False)[0] * torch.logspace(0, -5.5, min(shape), dtype=torch.float64))
            @ torch.linalg.svd(d, full_matrices=False)[2]
            for d in deltas
        ]
    if kind == "noisy":
        deltas = [d + 3e-8 * e for d, e in zip(deltas, drawn(3, shape, seed=9), strict=True)]
    rounded = [d.float() for d in deltas]
    for method in [*DELTA_METHODS, Cart(rank_ratio=0.25), Svc()]:
        single, double = merge(method, rounded), merge(method, [d.double() for d in rounded])
        near(single.double(), double, 1e-4)
