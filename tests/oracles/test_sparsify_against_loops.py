"""DARE, DELLA, breadcrumbs, SCE and PCB against the coordinate-by-coordinate oracle, with the library's own draws."""

from __future__ import annotations

from typing import Any

import loops
import loops_common
import loops_sparsify
import numpy as np
import pytest
from fuzz_cases import EXACT, ROUGH, Case, cases_of, chance_draws, zeros_like
from hypothesis import given, settings
from hypothesis import strategies as st
from test_against_loops import FUZZ, check

from fusion_bench import Breadcrumbs, Dare, Della, PcbMerging, Sce, TaskArithmetic, TiesMerging, fuse

FACTORS = st.sampled_from([1.0, 0.3, 0.7])
# Without changes that cancel another: divided by a probability they differ in the last place, and so do elections.
UNPAIRED = ["grid", "grid", "smooth", "zero", "equal"]
WAYS = ["none", "sum", "mean"]


def inner(consensus: str, factor: float) -> Any:
    """The library's method for a consensus of the oracle."""
    if consensus == "none":
        return TaskArithmetic(scaling_factor=factor)
    return TiesMerging(threshold=100.0, merge_func=consensus, scaling_factor=factor)  # type: ignore[arg-type]


def dare_masks(case: Case, density: float, seed: int) -> list[dict[str, np.ndarray]]:
    draws = chance_draws(case, seed)
    return [{name: values < density for name, values in draw.items()} for draw in draws]


# Rates at which 1/(1 − p) is a power of 2, so that rescaling does not round and what cancels still does.
@pytest.mark.parametrize("consensus", WAYS)
@settings(max_examples=60, **FUZZ)
@given(
    case=cases_of(),
    drop_rate=st.sampled_from([0.5, 0.75, 0.0, 0.875]),
    mode=st.sampled_from(["probability", "l1", "none"]),
    factor=FACTORS,
    seed=st.sampled_from([42, 0, 7]),
)
def test_dare(consensus: str, case: Case, drop_rate: float, mode: str, factor: float, seed: int) -> None:
    if consensus != "none" and mode == "l1":
        mode = "probability"  # Ratios of norms round differently in each precision, which may turn an exact tie.
    how: dict[str, Any] = {"rescale": False} if mode == "none" else {"rescale_mode": mode}
    method = Dare(drop_rate=drop_rate, inner=inner(consensus, factor), **how)
    merged = fuse(method, case.torch_models(), case.torch_base(), seed=seed)
    expected = loops_sparsify.dare(
        case.models, case.base, masks=dare_masks(case, 1 - drop_rate, seed), density=1 - drop_rate,
        scaling_factor=factor, rescale_mode=mode, consensus=consensus,
    )  # fmt: skip
    check(merged, expected, case, 8.0 * len(case.models))


@pytest.mark.parametrize("scope", ["model", "tensor"])
@settings(max_examples=80, **FUZZ)
@given(
    case=cases_of(),
    drop_rate=st.sampled_from([0.5, 0.75]),
    density=st.sampled_from([0.2, 0.5, 0.7]),
    merge_func=st.sampled_from(["sum", "mean", "max"]),
    count=st.sampled_from(["exact", "authors"]),
)
def test_dare_around_ties(
    scope: str, case: Case, drop_rate: float, density: float, merge_func: str, count: str
) -> None:
    """What DARE leaves is trimmed, elects and merges as if it were the task vector."""
    switches: dict[str, Any] = {"scope": scope, "density": density, "merge_func": merge_func, "count": count}
    method = Dare(drop_rate=drop_rate, inner=TiesMerging(scaling_factor=0.7, **switches))
    merged = fuse(method, case.torch_models(), case.torch_base())
    sparse = [
        loops_sparsify.dare_delta(loops.delta(model, case.base), mask, density=1 - drop_rate)
        for model, mask in zip(case.models, dare_masks(case, 1 - drop_rate, 42), strict=True)
    ]
    zeros = zeros_like(case.base)
    change = loops.ties(
        [loops_common.shaped(delta, case.base) for delta in sparse], zeros, scaling_factor=1.0, **switches
    )  # fmt: skip
    expected = {name: case.base[name].astype(np.float64) + 0.7 * change[name] for name in case.base}
    check(merged, expected, case, 4.0 * len(case.models))


@settings(max_examples=40, **FUZZ)
@given(case=cases_of())
def test_dare_in_linear_weights_alone(case: Case) -> None:
    method = Dare(drop_rate=0.5, only_linear_weights=True, inner=TaskArithmetic(scaling_factor=0.3))
    merged = fuse(method, case.torch_models(), case.torch_base())
    linear = {name for name, values in case.base.items() if values.ndim == 2 and not name.endswith("bias")}
    masks = [{name: mask[name] for name in mask if name in linear} for mask in dare_masks(case, 0.5, 42)]
    check(
        merged, loops_sparsify.dare(case.models, case.base, masks=masks, density=0.5, scaling_factor=0.3), case,
        2.0 * len(case.models),
    )  # fmt: skip


@pytest.mark.parametrize("consensus", WAYS)
@settings(max_examples=60, **FUZZ)
@given(
    case=cases_of(UNPAIRED),
    share=st.sampled_from([(0.5, 0.15), (0.5, 0.0), (0.2, 0.1), (0.75, 0.2), (0.3, 0.29)]),
    mode=st.sampled_from(["probability", "l1", "none"]),
    factor=FACTORS,
)
def test_della(consensus: str, case: Case, share: tuple[float, float], mode: str, factor: float) -> None:
    if consensus != "none" and mode == "l1":
        mode = "none"
    if consensus != "none" and mode == "probability":
        share = (0.5, 0.0)  # Division by 0.5 does not round: what cancels by chance cancels in either precision.
    how: dict[str, Any] = {"rescale": False} if mode == "none" else {"rescale_mode": mode}
    method = Della(density=share[0], epsilon=share[1], inner=inner(consensus, factor), **how)
    merged = fuse(method, case.torch_models(), case.torch_base())
    expected = loops_sparsify.della(
        case.models, case.base, draws=chance_draws(case), density=share[0], epsilon=share[1],
        scaling_factor=factor, rescale_mode=mode, consensus=consensus,
    )  # fmt: skip
    check(merged, expected, case, len(case.models) / (share[0] - share[1]))


@settings(max_examples=40, **FUZZ)
@given(case=cases_of(["smooth", "smooth", "zero", "equal"]))
def test_della_merges_by_normalised_consensus_unless_told(case: Case) -> None:
    merged = fuse(Della(), case.torch_models(), case.torch_base())
    expected = loops_sparsify.della(case.models, case.base, draws=chance_draws(case), density=0.5, epsilon=0.15)
    check(merged, expected, case, 3.0 * len(case.models))


@settings(max_examples=60, **FUZZ)
@given(case=cases_of(), density=st.sampled_from([0.25, 0.6]), rows=st.sampled_from(["model", "tensor"]))
def test_della_around_ties_with_trimming(case: Case, density: float, rows: str) -> None:
    """The inner method surveys what was drawn, in pieces of its own."""
    method = Della(density=0.6, epsilon=0.2, rescale=False, inner=TiesMerging(density=density, scope=rows))
    merged = fuse(method, case.torch_models(), case.torch_base())
    pruned = [
        loops_sparsify.della_delta(
            loops.delta(model, case.base), case.base, draw, density=0.6, epsilon=0.2, rescale_mode="none"
        )
        for model, draw in zip(case.models, chance_draws(case), strict=True)
    ]
    shaped = [loops_common.shaped(delta, case.base) for delta in pruned]
    change = loops.ties(shaped, zeros_like(case.base), scaling_factor=1.0, density=density, scope=rows)
    expected = {name: case.base[name].astype(np.float64) + 0.3 * change[name] for name in case.base}
    check(merged, expected, case, len(case.models))


@pytest.mark.parametrize("consensus", WAYS)
@settings(max_examples=80, **FUZZ)
@given(
    case=cases_of(),
    density=st.sampled_from([0.5, 0.29, 0.0, 0.1, 0.7, 0.95, 1.0]),
    gamma=st.sampled_from([0.01, 0.1, 0.3, 0.0, 0.5, 1.0]),
    factor=FACTORS,
)
def test_breadcrumbs(consensus: str, case: Case, density: float, gamma: float, factor: float) -> None:
    method = Breadcrumbs(density=density, gamma=gamma, inner=inner(consensus, factor))
    merged = fuse(method, case.torch_models(), case.torch_base())
    expected = loops_sparsify.breadcrumbs(
        case.models, case.base, density=density, gamma=gamma, scaling_factor=factor, consensus=consensus
    )  # fmt: skip
    check(merged, expected, case, len(case.models))


@settings(max_examples=80, **FUZZ)
@given(case=cases_of(), factor=FACTORS)
def test_sce_of_everything(case: Case, factor: float) -> None:
    merged = fuse(Sce(scaling_factor=factor), case.torch_models(), case.torch_base())
    check(merged, loops_sparsify.sce(case.models, case.base, scaling_factor=factor), case)


@settings(max_examples=120, **FUZZ)
@given(
    # Means of three or five values on a grid round, and with them the oracle's variances, which should be equal.
    case=st.one_of(cases_of(EXACT + ROUGH, (2, 4, 1)), cases_of(ROUGH, (3, 5), same=True)),
    topk=st.sampled_from([0.5, 0.0, 0.1, 0.29, 0.7, 0.9]),
)
def test_sce_of_the_entries_that_vary_most(case: Case, topk: float) -> None:
    merged = fuse(Sce(select_topk=topk), case.torch_models(), case.torch_base())
    check(merged, loops_sparsify.sce(case.models, case.base, select_topk=topk), case)


@settings(max_examples=120, **FUZZ)
@given(
    case=cases_of(),
    ratio=st.sampled_from([0.1, 0.05, 0.3, 0.5, 0.9, 0.0, 1.0]),
    factor=st.sampled_from([1.2, 1.0, 0.8]),
)
def test_pcb(case: Case, ratio: float, factor: float) -> None:
    merged = fuse(PcbMerging(ratio=ratio, scaling_factor=factor), case.torch_models(), case.torch_base())
    check(merged, loops_sparsify.pcb(case.models, case.base, ratio=ratio, scaling_factor=factor), case, 2.0)
