"""Golden vectors and laws of the methods that select or mask: MagMax, EMR-Merging, TALL masks, consensus, negation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_bench import Consensus, EmrMerging, Magmax, TallMask, TaskArithmetic, fuse
from fusion_bench.errors import ConfigError, NonFiniteError

R = [
    [0.9, -0.1, 0.3, -0.7, 0.05, 0.2, -0.4, 0.6, -0.8, 0.01],
    [-0.2, 0.8, 0.4, -0.6, -0.03, -0.9, 0.1, 0.5, 0.7, -0.02],
    [0.5, -0.3, -0.9, 0.1, 0.04, 0.25, 0.35, -0.65, 0.15, 0.55],
]
PAIR = [[1.0, -2.0, 0.0, 3.0], [2.0, 1.0, -1.0, -1.0]]
TRIPLE = [[1.0, -2.0, 0.5, 3.0], [2.0, 1.0, -1.0, -1.0], [0.2, 0.1, 2.0, 0.0]]
State = dict[str, torch.Tensor]


def experts(rows: list[list[float]]) -> tuple[list[State], State]:
    states = [{"w": torch.tensor(row, dtype=torch.float64)} for row in rows]
    return states, {"w": torch.zeros(len(rows[0]), dtype=torch.float64)}


def entries(method: Any, rows: list[list[float]]) -> Any:
    """The merged deltas on a zero base: a list, or one for each task."""
    models, base = experts(rows)
    merged = fuse(method, models, base)
    return [state["w"].tolist() for state in merged.values()] if method.per_task else merged["w"].tolist()


def pool(count: int, seed: int = 0) -> tuple[list[State], State]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"b": (40, 30), "a": (2, 3, 4), "s": (), "n": (0, 4), "c": (1200, 1000)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    models = [
        {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(count)
    ]
    return models, base


def test_magmax() -> None:
    """G17; of equal magnitudes the later model's."""
    expected = [0.9, 0.8, -0.9, -0.7, 0.05, -0.9, -0.4, -0.65, -0.8, 0.55]
    assert entries(Magmax(scaling_factor=1.0), R) == expected
    assert entries(Magmax(scaling_factor=1.0), [[1.0, -1.0, 0.5], [-1.0, 1.0, 0.5]]) == [-1.0, 1.0, 0.5]


def test_magmax_takes_the_largest_magnitudes() -> None:
    """L43."""
    models, base = pool(4)
    zero = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    deltas = [{name: model[name] - base[name] for name in base} for model in models]
    merged = fuse(Magmax(scaling_factor=1.0), deltas, zero)
    for name in base:
        largest = torch.stack([delta[name].abs() for delta in deltas]).amax(0) if base[name].numel() else base[name]
        assert torch.equal(merged[name].abs(), largest)


def test_magmax_refuses_what_a_comparison_would_drop() -> None:
    models, base = pool(3)
    models[1]["b"][3, 4] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'model_1'.*'b'"):
        fuse(Magmax(), models, base)


def test_emr() -> None:
    """G17."""
    first, second = entries(EmrMerging(), PAIR)
    assert first == pytest.approx([1.714286, -1.714286, 0, 2.571429], abs=1e-6)
    assert second == pytest.approx([3.333333, 0, -1.666667, 0], abs=1e-6)


def test_emr_sums_the_means_of_tensors() -> None:
    """Each tensor counts by its mean, whatever its size: cutting a vector in two changes the factors."""
    cut = [{"a": torch.tensor(row[:1]), "b": torch.tensor(row[1:])} for row in PAIR]
    base = {"a": torch.zeros(1), "b": torch.zeros(3)}
    merged = fuse(EmrMerging(), cut, base)
    # Model 0: |τ| has the means 1 and 5/3, its masked vector 2 and 5/3.
    factor = (1 + 5 / 3) / (2 + 5 / 3)
    assert torch.cat(list(merged["model_0"].values())).tolist() == pytest.approx(
        [2 * factor, -2 * factor, 0, 3 * factor], abs=1e-6
    )


def test_emr_where_no_sign_agrees() -> None:
    """An empty mask leaves the base; a total of 0 elects the negative entries."""
    assert entries(EmrMerging(), [[3.0, 2.0], [-1.0, -0.5]])[1] == [0.0, 0.0]
    assert entries(EmrMerging(), [[1.0], [-1.0]]) == [[0.0], [-1.0]]


def test_emr_recovers_models_that_change_different_entries() -> None:
    """L44, with tensors of more than one slice."""
    models, base = pool(3)
    generator = torch.Generator().manual_seed(9)
    owner = {name: torch.randint(0, 3, tensor.shape, generator=generator) for name, tensor in base.items()}
    apart = [
        {name: torch.where(owner[name] == i, model[name], base[name]) for name in base}
        for i, model in enumerate(models)
    ]
    merged = fuse(EmrMerging(), apart, base)
    for i, model in enumerate(apart):
        for name in base:
            torch.testing.assert_close(merged[f"model_{i}"][name], model[name], rtol=1e-6, atol=1e-6)


def test_emr_never_opposes_a_model() -> None:
    """L44."""
    models, base = pool(5)
    zero = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    deltas = [{name: model[name] - base[name] for name in base} for model in models]
    merged = fuse(EmrMerging(), deltas, zero)
    for i, delta in enumerate(deltas):
        assert all(bool((merged[f"model_{i}"][name] * delta[name] >= 0).all()) for name in base)


def test_tall_masks() -> None:
    """G17."""
    total = [3.2, -0.9, 1.5, 2.0]
    for scale, masks in (
        (1.0, [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]]),
        (0.5, [[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]]),
    ):
        got = entries(TallMask(mask_scale=scale), TRIPLE)
        for row, mask in zip(got, masks, strict=True):
            assert row == pytest.approx([a * b for a, b in zip(total, mask, strict=True)], abs=1e-12)


def test_consensus() -> None:
    """G17."""
    assert entries(Consensus(mask_scale=1.0, scaling_factor=1.0), TRIPLE) == [0, 0, 0, 0]
    got = entries(Consensus(mask_scale=0.5, scaling_factor=1.0), TRIPLE)
    assert got == pytest.approx([0, -0.9, 0, 0], abs=1e-12)


def test_consensus_of_none_and_of_more_than_all() -> None:
    """L28: k = 0 is task arithmetic, bit for bit; k above the number of models is the base."""
    models, base = pool(3)
    plain = fuse(TaskArithmetic(scaling_factor=0.3), models, base)
    everything = fuse(Consensus(k=0), models, base)
    nothing = fuse(Consensus(k=4), models, base)
    for name in base:
        assert torch.equal(everything[name], plain[name])
        assert torch.equal(nothing[name], base[name])


def test_equal_models_have_empty_masks() -> None:
    models, base = pool(1)
    merged = fuse(Consensus(mask_scale=0.51, k=1), models * 3, base)
    assert all(torch.equal(merged[name], base[name]) for name in base)


@pytest.mark.parametrize("method", [Consensus, TallMask])
def test_mask_scales_must_fit_the_pool(method: Any) -> None:
    models, base = pool(2)
    with pytest.raises(ConfigError, match=r"method\.mask_scale=\[0\.4\]: 1 weights for 2 models"):
        fuse(method(mask_scale=(0.4,)), models, base)
    with pytest.raises(ConfigError, match=r"method\.mask_scale.*model_7"):
        fuse(method(mask_scale={"model_0": 0.4, "model_7": 0.4}), models, base)
    with pytest.raises(ConfigError, match=r"method\.mask_scale"):
        method(mask_scale=(0.4, -0.1))


def test_negation_mirrors_about_the_base() -> None:
    """Forgetting and learning by task vectors is task arithmetic with a negative and a positive factor."""
    base = {"w": torch.tensor([1.0, 1.0, 1.0])}
    model = {"w": torch.tensor([2.0, 0.5, 1.0])}
    forgotten = fuse(TaskArithmetic(scaling_factor=-1.0), [model], base)
    learnt = fuse(TaskArithmetic(scaling_factor=1.0), [model], base)
    assert forgotten["w"].tolist() == [0.0, 1.5, 1.0]
    assert (forgotten["w"] + learnt["w"]).tolist() == (2 * base["w"]).tolist()
