"""MagMax, EMR, TALL masks and consensus against the coordinate-by-coordinate oracle."""

from __future__ import annotations

from typing import Any

import loops_masks
import numpy as np
import torch
from fuzz_cases import EXACT, ROUGH, Case, cases_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_against_loops import FUZZ, check

from fusion_bench import Consensus, EmrMerging, Magmax, TallMask, TaskArithmetic, fuse

FACTORS = st.sampled_from([1.0, 0.3, 0.5, -1.0])
# No multiple of a quarter is another one times such a scale, so no comparison ends equal but at 0.
ODD_SCALES = st.sampled_from([0.23, 0.37, 0.61, 0.83])
EVEN_SCALES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])


def per_task(merged: dict[str, dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    assert list(merged) == [f"model_{i}" for i in range(len(merged))]
    return [merged[name] for name in merged]


@settings(max_examples=80, **FUZZ)
@given(case=cases_of(), factor=FACTORS)
def test_magmax(case: Case, factor: float) -> None:
    merged = fuse(Magmax(scaling_factor=factor), case.torch_models(), case.torch_base())
    check(merged, loops_masks.magmax(case.models, case.base, scaling_factor=factor), case)


@settings(max_examples=80, **FUZZ)
@given(case=cases_of())
def test_emr(case: Case) -> None:
    merged = per_task(fuse(EmrMerging(), case.torch_models(), case.torch_base()))
    _, _, factors = loops_masks.emr_parts(case.models, case.base)
    expected = loops_masks.emr(case.models, case.base)
    assert len(merged) == len(expected)
    for ours, wanted, factor in zip(merged, expected, factors, strict=True):
        check(ours, wanted, case, max(1.0, factor))


def scaled(data: st.DataObject, case: Case, exact: bool) -> tuple[Any, list[float]]:
    """A mask scale in one of its three forms, and as a list."""
    of = EVEN_SCALES if exact else ODD_SCALES
    count = len(case.models)
    form = data.draw(st.sampled_from(["one", "list", "names"]))
    if form == "one":
        scale = data.draw(of)
        return scale, [scale] * count
    scales = data.draw(st.lists(of, min_size=count, max_size=count))
    if form == "list":
        return tuple(scales), scales
    return {f"model_{i}": scales[i] for i in reversed(range(count))}, scales


def either() -> Any:
    """Cases with the kind of scale that leaves no comparison to rounding."""
    return st.one_of(
        st.tuples(cases_of(EXACT), st.just(True)),
        st.tuples(cases_of(EXACT + ROUGH), st.just(False)),
    )


@settings(max_examples=80, **FUZZ)
@given(made=either(), factor=FACTORS, data=st.data())
def test_tall_mask(made: tuple[Case, bool], factor: float, data: st.DataObject) -> None:
    case, exact = made
    given_, scales = scaled(data, case, exact)
    method = TallMask(mask_scale=given_, scaling_factor=factor)
    merged = per_task(fuse(method, case.torch_models(), case.torch_base()))
    expected = loops_masks.tall(case.models, case.base, mask_scales=scales, scaling_factor=factor)
    for ours, wanted in zip(merged, expected, strict=True):
        check(ours, wanted, case, len(case.models))


@settings(max_examples=100, **FUZZ)
@given(made=either(), factor=FACTORS, k=st.integers(0, 6), data=st.data())
def test_consensus(made: tuple[Case, bool], factor: float, k: int, data: st.DataObject) -> None:
    case, exact = made
    given_, scales = scaled(data, case, exact)
    method = Consensus(k=k, mask_scale=given_, scaling_factor=factor)
    merged = fuse(method, case.torch_models(), case.torch_base())
    expected = loops_masks.consensus(case.models, case.base, k=k, mask_scales=scales, scaling_factor=factor)
    check(merged, expected, case, len(case.models))


@settings(max_examples=60, **FUZZ)
@given(case=cases_of(EXACT + ROUGH), factor=FACTORS)
def test_negation_is_task_arithmetic(case: Case, factor: float) -> None:
    """Forgetting: the base minus λ times the task vector; several at once subtract their sum."""
    method = TaskArithmetic(scaling_factor=-factor)
    merged = fuse(method, case.torch_models()[:1], case.torch_base())
    check(merged, loops_masks.negation(case.models[0], case.base, scaling_factor=factor), case)
    plus = fuse(TaskArithmetic(scaling_factor=factor), case.torch_models(), case.torch_base())
    minus = fuse(method, case.torch_models(), case.torch_base())
    mirrored = {name: 2 * case.base[name].astype(np.float64) - plus[name].double().numpy() for name in case.base}
    check(minus, mirrored, case, len(case.models))
