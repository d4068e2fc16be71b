"""The elementary methods against the coordinate-by-coordinate oracle, on shapes and values chosen to be awkward."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import loops
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusion_bench import SimpleAverage, TaskArithmetic, TiesMerging, WeightedAverage, fuse

SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (5, 3), (3, 5), (2, 3, 4), (6, 1), (20,)]
# Sorted, these come in another order than here: capitals, an underscore, and a 10 before a 9.
NAMES = ["z.weight", "a.bias", "m.9.w", "m.10.w", "Head", "_scale"]
PATTERNS = ["grid", "grid", "smooth", "zero", "equal", "opposite", "two_magnitudes"]
DTYPES = {"float64": np.float64, "float32": np.float32}
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
# How a share is written, and the share.
SHARES: list[tuple[dict[str, float], float]] = [
    ({}, 0.2),
    ({"threshold": 20.0}, 0.2),
    ({"threshold": 7.0}, 0.07),
    ({"threshold": 29.0}, 0.29),
    ({"threshold": 50.0}, 0.5),
    ({"threshold": 70.0}, 0.7),
    ({"threshold": 0.35}, 0.35),
    ({"threshold": 1.0}, 1.0),
    ({"threshold": 100.0}, 1.0),
    ({"density": 0.29}, 0.29),
    ({"density": 0.6}, 0.6),
    ({"density": 1.0}, 1.0),
]
WEIGHTS = [0.25, 0.5, 1.0, 1.5, 2.0]
FUZZ = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}


@dataclass
class Case:
    """A base and its models, as arrays; `shuffles` reorders the keys of each when they become state dicts."""

    base: dict[str, np.ndarray]
    models: list[dict[str, np.ndarray]]
    dtype: str
    shuffles: list[list[str]]

    def torch_base(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(self.base[name].copy()) for name in self.shuffles[0]}

    def torch_models(self) -> list[dict[str, torch.Tensor]]:
        return [
            {name: torch.from_numpy(model[name].copy()) for name in order}
            for model, order in zip(self.models, self.shuffles[1:], strict=True)
        ]

    @property
    def scale(self) -> float:
        """The largest magnitude that goes in."""
        return max([1.0, *(float(abs(t).max()) for model in [self.base, *self.models] for t in model.values())])


def entries(pattern: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if pattern == "smooth":
        return rng.standard_normal(shape)
    if pattern == "two_magnitudes":
        return rng.choice([-0.5, 0.5, 0.25], size=shape)
    # Few values and zero among them: equal magnitudes and totals of exactly 0 are frequent, and sums are exact.
    return rng.integers(-4, 5, size=shape) / 4


@st.composite
def cases(draw: st.DrawFn) -> Case:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    shapes = {name: draw(st.sampled_from(SHAPES)) for name in names}
    count = draw(st.sampled_from([3, 2, 5, 4, 1]))
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    patterns = [{name: draw(st.sampled_from(PATTERNS)) for name in names} for _ in range(count)]
    zero_base = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = DTYPES[dtype]
    base = {
        name: np.asarray(np.zeros(shapes[name]) if zero_base else rng.integers(-8, 9, size=shapes[name]) / 8, kind)
        for name in names
    }
    changes: list[dict[str, np.ndarray]] = []
    for row in patterns:
        change: dict[str, np.ndarray] = {}
        for name, pattern in row.items():
            first = changes[0][name] if changes else np.asarray(entries("grid", shapes[name], rng))
            if pattern == "zero":
                change[name] = np.zeros(shapes[name])
            elif pattern in ("equal", "opposite"):
                change[name] = first if pattern == "equal" else -first
            else:
                change[name] = np.asarray(entries(pattern, shapes[name], rng))
        changes.append(change)
    models = [{name: np.asarray(base[name] + change[name].astype(kind), kind) for name in names} for change in changes]
    shuffles = [[names[i] for i in rng.permutation(len(names))] for _ in range(count + 1)]
    return Case(base, models, dtype, shuffles)


def condition(weights: list[float] | None, count: int) -> float:
    """How much a weighted sum, or a weighted mean over any of the models, can magnify a rounding error."""
    given_ = [1.0] * count if weights is None else weights
    size = sum(abs(weight) for weight in given_)
    if min(given_) >= 0:
        return max(1.0, size)
    subsets = itertools.chain.from_iterable(itertools.combinations(given_, n) for n in range(1, count + 1))
    smallest = min((abs(sum(subset)) for subset in subsets if sum(subset) != 0), default=1.0)
    return max(1.0, size, size / smallest)


def check(merged: dict[str, torch.Tensor], expected: dict[str, np.ndarray], case: Case, magnify: float = 1.0) -> None:
    assert sorted(merged) == sorted(expected)
    for name, wanted in expected.items():
        assert str(merged[name].dtype) == f"torch.{case.dtype}", name
        assert tuple(merged[name].shape) == wanted.shape, name
        bound = TOLERANCE[case.dtype] * max(case.scale * magnify, float(abs(wanted).max()))
        worst = float(abs(merged[name].double().numpy() - wanted).max())
        assert worst <= bound, (
            f"{name}: off by {worst:.3g}, allowed {bound:.3g}\ngot {merged[name].tolist()}\nwanted {wanted.tolist()}"
        )


@settings(max_examples=60, **FUZZ)
@given(case=cases(), with_base=st.booleans())
def test_simple_average(case: Case, with_base: bool) -> None:
    merged = fuse(SimpleAverage(), case.torch_models(), case.torch_base() if with_base else None)
    check(merged, loops.mean(case.models), case)


@settings(max_examples=80, **FUZZ)
@given(case=cases(), normalize=st.booleans(), named=st.booleans(), data=st.data())
def test_weighted_average(case: Case, normalize: bool, named: bool, data: st.DataObject) -> None:
    choices = st.sampled_from([*WEIGHTS, 0.0, -0.5, -1.0])
    count = len(case.models)
    weights = data.draw(
        st.one_of(st.none(), st.lists(choices, min_size=count, max_size=count).filter(lambda ws: sum(ws) != 0))
    )
    expected = loops.weighted_mean(case.models, weights, normalize or weights is None)
    if weights is None:
        merged = fuse(WeightedAverage(), case.torch_models(), None)
    elif named:
        models = {f"model {i}": model for i, model in enumerate(case.torch_models())}
        by_name = {name: weights[i] for i, name in reversed(list(enumerate(models)))}
        merged = fuse(WeightedAverage(weights=by_name, normalize=normalize), models, None)
    else:
        merged = fuse(WeightedAverage(weights=tuple(weights), normalize=normalize), case.torch_models(), None)
    check(merged, expected, case, condition(weights, count))


@settings(max_examples=60, **FUZZ)
@given(case=cases(), factor=st.sampled_from([0.3, 0.0, 1.0, -1.0, 1.7, 0.1]))
def test_task_arithmetic(case: Case, factor: float) -> None:
    merged = fuse(TaskArithmetic(scaling_factor=factor), case.torch_models(), case.torch_base())
    expected = loops.task_arithmetic(case.models, case.base, factor)
    check(merged, expected, case, len(case.models) * max(1.0, abs(factor)))
    if factor == 0.0:
        for name, start in case.base.items():
            assert np.array_equal(merged[name].numpy(), start), name


def ties_weights(data: st.DataObject, count: int, negative: bool) -> list[float] | None:
    """Weights by a uniform draw; no weights in one case of five."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    choices = [*WEIGHTS, 0.0, 0.0, -0.5, -1.0] if negative else [*WEIGHTS, 0.0, 0.0]
    return None if rng.random() < 0.2 else [float(weight) for weight in rng.choice(choices, size=count)]


WAYS = [
    *itertools.product(["sum", "max"], ["unweighted", "weighted"], ["weights"]),
    *itertools.product(["mean"], ["unweighted", "weighted"], ["weights", "count"]),
]


@pytest.mark.parametrize(("merge_func", "sign_weights", "normalize_by"), WAYS)
@settings(max_examples=90, **FUZZ)
@given(
    case=cases(),
    share=st.sampled_from(SHARES),
    factor=st.sampled_from([1.0, 0.3, 1.5]),
    scope=st.sampled_from(["model", "tensor"]),
    count=st.sampled_from(["exact", "authors"]),
    zero_sum=st.sampled_from(["none", "positive", "majority"]),
    named=st.booleans(),
    data=st.data(),
)
def test_ties(
    merge_func: str,
    sign_weights: str,
    normalize_by: str,
    case: Case,
    share: tuple[dict[str, Any], float],
    factor: float,
    scope: str,
    count: str,
    zero_sum: str,
    named: bool,
    data: st.DataObject,
) -> None:
    switches: dict[str, Any] = {"merge_func": merge_func, "sign_weights": sign_weights, "normalize_by": normalize_by}
    switches |= {"scope": scope, "count": count, "zero_sum": zero_sum}
    weights = ties_weights(data, len(case.models), negative=merge_func != "max")
    expected = loops.ties(
        case.models, case.base, scaling_factor=factor, density=share[1], weights=weights, **switches
    )  # fmt: skip
    models: Any = case.torch_models()
    given_: Any = None if weights is None else tuple(weights)
    if named:
        models = {f"model {i}": model for i, model in enumerate(models)}
        given_ = None if weights is None else {name: weights[i] for i, name in reversed(list(enumerate(models)))}
    method = TiesMerging(scaling_factor=factor, weights=given_, **share[0], **switches)
    merged = fuse(method, models, case.torch_base())
    check(merged, expected, case, condition(weights, len(case.models)) * max(1.0, factor))


@pytest.mark.parametrize("compat", ["authors", "mergekit", "peft"])
@settings(max_examples=80, **FUZZ)
@given(
    case=cases(),
    share=st.sampled_from(SHARES),
    factor=st.sampled_from([1.0, 0.3, 1.5]),
    merge_func=st.sampled_from(["sum", "mean", "max"]),
    data=st.data(),
)
def test_ties_presets(
    compat: str, case: Case, share: tuple[dict[str, Any], float], factor: float, merge_func: str, data: st.DataObject
) -> None:
    fields: dict[str, Any] = {"scaling_factor": factor, "density": share[1]}
    chosen: dict[str, Any] = {}
    if compat == "authors":
        # Their code has no weights; the way of merging stays a choice.
        weights = None
        chosen = {"merge_func": merge_func}
        expected = loops.ties(
            case.models, case.base, scope="model", count="authors", zero_sum="majority", **chosen, **fields
        )  # fmt: skip
    else:
        weights = ties_weights(data, len(case.models), negative=True)
        told = loops.ties_mergekit if compat == "mergekit" else loops.ties_peft
        expected = told(case.models, case.base, weights=weights, **fields)
    given_ = None if weights is None else tuple(weights)
    method = TiesMerging(compat=compat, scaling_factor=factor, weights=given_, **share[0], **chosen)
    merged = fuse(method, case.torch_models(), case.torch_base())
    check(merged, expected, case, condition(weights, len(case.models)) * max(1.0, factor))


@pytest.mark.parametrize("fields", [{"threshold": 29.0}, {"density": 0.29}])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_the_count_is_the_integer_part_of_a_product_of_floats(fields: dict[str, float], scope: str) -> None:
    """int(0.29·100) = 28."""
    change = torch.arange(1, 101, dtype=torch.float64)
    method = TiesMerging(scaling_factor=1.0, scope=scope, **fields)  # type: ignore[arg-type]
    merged = fuse(method, [{"w": change}], {"w": torch.zeros(100, dtype=torch.float64)})["w"]
    assert torch.nonzero(merged).flatten().tolist() == list(range(72, 100))


def test_equal_magnitudes_are_taken_in_the_order_of_sorted_names() -> None:
    """Six equal magnitudes, three places: `a` comes before `b` although `b` is stored first."""
    change = {"b": torch.tensor([1.0, -1.0]), "a": torch.tensor([[-1.0, 1.0], [1.0, -1.0]])}
    base = {name: torch.zeros_like(tensor) for name, tensor in change.items()}
    merged = fuse(TiesMerging(scaling_factor=1.0, threshold=50.0), [change], base)
    assert merged["a"].tolist() == [[-1.0, 1.0], [1.0, 0.0]]
    assert merged["b"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("merge_func", ["sum", "mean", "max"])
def test_ties_copies_what_is_not_a_float(scope: str, merge_func: str) -> None:
    """Integers and booleans come from the base with their dtype and do not count as entries to trim."""
    base = {
        "steps": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "position_ids": torch.arange(50, dtype=torch.int32),
        "w": torch.zeros(4),
    }
    model = {**base, "steps": torch.tensor(7), "mask": torch.tensor([False, True]), "w": torch.tensor([4.0, 3, 2, 1])}
    method = TiesMerging(scaling_factor=1.0, threshold=50.0, scope=scope, merge_func=merge_func)
    merged = fuse(method, [model], base)
    assert merged["w"].tolist() == [4.0, 3.0, 0.0, 0.0]
    for name in ("steps", "mask", "position_ids"):
        assert merged[name].dtype == base[name].dtype, name
        assert torch.equal(merged[name], base[name]), name


def test_a_tensor_of_two_names_counts_once() -> None:
    """Three of the six distinct entries stay; counted by name there would be ten, and five would stay."""
    shared, zeros = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.zeros(4)
    model = {"encoder": shared, "decoder": shared, "head": torch.tensor([5.0, 6.0])}
    base = {"encoder": zeros, "decoder": zeros, "head": torch.zeros(2)}
    merged = fuse(TiesMerging(scaling_factor=1.0, threshold=50.0), [model], base)
    assert merged["encoder"].tolist() == merged["decoder"].tolist() == [0.0, 0.0, 0.0, 4.0]
    assert merged["head"].tolist() == [5.0, 6.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single_and_rounded_once(dtype: torch.dtype) -> None:
    """The result is the float32 result in the dtype of the base, within one unit in the last place."""
    generator = torch.Generator().manual_seed(5)

    def around(start: torch.Tensor, size: float) -> torch.Tensor:
        return (start + size * torch.randn(start.shape, generator=generator)).to(dtype)

    base = {"w": around(torch.zeros(64, 9), 1.0), "b": around(torch.zeros(33), 1.0)}
    models = [{name: around(tensor, 0.1) for name, tensor in base.items()} for _ in range(4)]
    arrays = [{name: tensor.float().numpy() for name, tensor in model.items()} for model in models]
    start = {name: tensor.float().numpy() for name, tensor in base.items()}
    expected = {
        "average": loops.mean(arrays),
        "arithmetic": loops.task_arithmetic(arrays, start, 0.3),
        "ties": loops.ties(arrays, start, scaling_factor=0.3, density=0.2),
    }
    merged = {
        "average": fuse(SimpleAverage(), models, base),
        "arithmetic": fuse(TaskArithmetic(), models, base),
        "ties": fuse(TiesMerging(), models, base),
    }
    for method, wanted in expected.items():
        for name in base:
            got = merged[method][name]
            assert got.dtype == dtype
            exact = torch.from_numpy(wanted[name])
            unit = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).smallest_normal)
            assert bool(((got.double() - exact).abs() <= unit).all()), (method, name)


@pytest.mark.parametrize("count", ["exact", "authors"])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_selection_is_decided_on_the_differences_in_single_precision(scope: str, count: str) -> None:
    """Weights near 0.3 on a base of −1: the differences have a coarser spacing, so different weights become ties."""
    rng = np.random.default_rng(4)
    fine = (np.float32(0.3) + rng.permutation(400).astype(np.float32) * np.float32(2.0**-25)).astype(np.float32)
    assert len(np.unique(fine)) == 400
    model = {"w": fine.reshape(20, 20)}
    base = {"w": np.full((20, 20), -1, np.float32)}
    assert len(np.unique(model["w"] - base["w"])) < 110
    for density in (0.2, 0.33, 0.5):
        method = TiesMerging(scaling_factor=1.0, density=density, scope=scope, count=count)  # type: ignore[arg-type]
        merged = fuse(method, [{"w": torch.from_numpy(model["w"])}], {"w": torch.from_numpy(base["w"])})["w"].numpy()
        expected = loops.ties([model], base, scaling_factor=1.0, density=density, scope=scope, count=count)["w"]
        assert np.array_equal(merged != -1, expected != -1), density


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(bad: float, scope: str) -> None:
    """L14: one such entry in one model, or in the base, stops every method and is named."""
    clean = {"a": torch.ones(3, 2), "w": torch.zeros(5)}
    broken = {"a": torch.ones(3, 2), "w": torch.tensor([0.0, 1.0, bad, 0.0, 2.0])}
    for method in (TaskArithmetic(), TiesMerging(scope=scope), TiesMerging(scope=scope, threshold=100.0)):
        for models, base in (([clean, broken], clean), ([clean, clean], broken)):
            with pytest.raises(Exception, match=r"'w'.* NaN or infinite"):
                fuse(method, models, base)
    for method in (SimpleAverage(), WeightedAverage()):
        with pytest.raises(Exception, match=r"'w'.* NaN or infinite"):
            fuse(method, [clean, broken], clean)


# Laws that no oracle is needed for.


@settings(max_examples=40, **FUZZ)
@given(case=cases(), zero_sum=st.sampled_from(["none", "positive", "majority"]), data=st.data())
def test_order_of_models_and_keys_does_not_matter(case: Case, zero_sum: str, data: st.DataObject) -> None:
    """L3, L8."""
    order = data.draw(st.permutations(range(len(case.models))))
    models, base = case.torch_models(), case.torch_base()
    again = [{name: models[i][name] for name in sorted(models[i], reverse=True)} for i in order]
    turned = {name: base[name] for name in sorted(base, reverse=True)}
    for method in (SimpleAverage(), TaskArithmetic(), TiesMerging(threshold=40.0, zero_sum=zero_sum)):
        first, second = fuse(method, models, base), fuse(method, again, turned)
        check(second, {name: first[name].double().numpy() for name in base}, case, len(models))


@settings(max_examples=40, **FUZZ)
@given(case=cases(), scope=st.sampled_from(["model", "tensor"]))
def test_identities(case: Case, scope: str) -> None:
    """L1, L4, L5, L9, L10."""
    models, base = case.torch_models(), case.torch_base()
    start = case.base
    only = [models[0]]
    for method in (
        SimpleAverage(),
        WeightedAverage(weights=(2.5,)),
        TaskArithmetic(scaling_factor=1.0),
        TiesMerging(scaling_factor=1.0, threshold=100.0, scope=scope),
    ):
        check(fuse(method, only, base), {name: case.models[0][name].astype(np.float64) for name in start}, case)
    for method in (TaskArithmetic(scaling_factor=0.0), TiesMerging(scaling_factor=0.0, scope=scope)):
        merged = fuse(method, models, base)
        for name in start:
            assert merged[name].numpy().tobytes() == start[name].tobytes(), name
    nothing = [dict(base) for _ in models]
    for method in (TaskArithmetic(), TiesMerging(scope=scope, zero_sum="majority")):
        merged = fuse(method, nothing, base)
        for name in start:
            assert np.array_equal(merged[name].numpy(), start[name]), name
    method = TiesMerging(threshold=40.0, scope=scope)
    first, second = fuse(method, models, base), fuse(method, models, base)
    for name in start:
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes()
        assert base[name].numpy().tobytes() == start[name].tobytes()
        for model, array in zip(models, case.models, strict=True):
            assert model[name].numpy().tobytes() == array[name].tobytes()


@settings(max_examples=40, **FUZZ)
@given(case=cases())
def test_relations_between_methods(case: Case) -> None:
    """L2 and L20: N equal experts, and average = task arithmetic at λ = 1/N."""
    models, base, count = case.torch_models(), case.torch_base(), len(case.models)
    average = {name: tensor.double().numpy() for name, tensor in fuse(SimpleAverage(), models, base).items()}
    check(fuse(TaskArithmetic(scaling_factor=1 / count), models, base), average, case, count)
    equal = [models[0]] * count
    expected = {name: case.models[0][name].astype(np.float64) for name in case.base}
    check(fuse(SimpleAverage(), equal, base), expected, case)
    check(fuse(TaskArithmetic(scaling_factor=1 / count), equal, base), expected, case)
    for merge_func in ("mean", "max"):
        method = TiesMerging(scaling_factor=1.0, threshold=100.0, merge_func=merge_func)
        check(fuse(method, equal, base), expected, case)


@settings(max_examples=40, **FUZZ)
@given(case=cases())
def test_ties_with_one_sign_everywhere(case: Case) -> None:
    """L21: without trimming and with one sign, sum = task arithmetic and mean = average."""
    kind = DTYPES[case.dtype]
    same_sign = [
        {name: case.base[name] + np.asarray(abs(model[name] - case.base[name]) + 1, kind) for name in case.base}
        for model in case.models
    ]
    models = [{name: torch.from_numpy(np.asarray(model[name], kind)) for name in model} for model in same_sign]
    base, count = case.torch_base(), len(models)
    for merge_func, other in (("sum", TaskArithmetic(scaling_factor=1.0)), ("mean", SimpleAverage())):
        merged = fuse(TiesMerging(scaling_factor=1.0, threshold=1.0, merge_func=merge_func), models, base)
        expected = {name: tensor.double().numpy() for name, tensor in fuse(other, models, base).items()}
        check(merged, expected, case, 4.0 * count)
