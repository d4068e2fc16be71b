"""Fisher merging: the golden vector and the laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fusion_bench.api import fuse
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import ConfigError, NonFiniteError
from fusion_bench.method.fisher_weighted import FisherWeighted
from fusion_bench.method.merging.fisher_merging import FisherMerging
from fusion_bench.method.statistics_of import norm
from fusion_bench.method.weights import normalized
from fusion_bench.statistics import Statistics
from fusion_bench.tensor_data import TensorData

MODELS = ([1.0, 2.0, -1.0], [3.0, 0.0, 1.0])
FISHERS = ([1.0, 0.0, 2.0], [3.0, 0.0, 0.0])


def vector(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weighted(
    models: Sequence[Any], fishers: Sequence[Any], factors: Sequence[float] | None = None, **fields: Any
) -> torch.Tensor:
    statistics = {f"model_{i}": Statistics.of({"w": vector(f)}) for i, f in enumerate(fishers)}
    method = FisherWeighted(
        statistics=statistics, names=frozenset({"w"}), factors=tuple(factors or [1.0] * len(models)), **fields
    )
    merged: torch.Tensor = fuse(method, [{"w": vector(m)} for m in models])["w"]
    return merged


def test_golden() -> None:
    """G6, with the floor alone and normalised."""
    close: Any = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(weighted(MODELS, FISHERS, floor=1e-8), vector([2.5, 1.0, -1.0]), **close)
    norms = [norm(Statistics.of({"w": vector(f)}), ["w"]) for f in FISHERS]
    assert norms == pytest.approx([2.236068, 3.0], abs=1e-6)
    factors = normalized([1 / (n + 1e-6) for n in norms])
    assert factors == pytest.approx([0.572949, 0.427051], abs=1e-6)
    wanted = vector([2.381966, 1.145898, -0.999999])
    torch.testing.assert_close(weighted(MODELS, FISHERS, factors, floor=1e-6), wanted, **close)


def test_laws_of_the_weighted_mean() -> None:
    models, fishers = MODELS, ([1.0, 0.5, 2.0], [3.0, 4.0, 0.25])
    equal = weighted(models, ([2.0, 7.0, 1.0],) * 2, (0.25, 0.75), floor=0.0)
    torch.testing.assert_close(equal, 0.25 * vector(models[0]) + 0.75 * vector(models[1]))
    scaled = [[100 * entry for entry in f] for f in fishers]
    torch.testing.assert_close(weighted(models, fishers, floor=0.0), weighted(models, scaled, floor=0.0))
    one = weighted(models, ([0.0] * 3, [1e-9, 5.0, 1.0]), floor=0.0)
    assert torch.equal(one, vector(models[1]))
    assert torch.equal(weighted(models, ([0.0] * 3,) * 2, (0.9, 0.1), floor=0.0), vector([2.0, 1.0, 0.0]))
    bounded = weighted(models, ([1.0, 0.0, 2.0], [3.0, 0.0, 0.0]), floor=1e-8, mode="max")
    torch.testing.assert_close(bounded, vector([2.5, 1.0, -1.0]), atol=1e-7, rtol=0)


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()


def points(name: str, seed: int) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    return TensorData(name, inputs, torch.randint(0, 3, (20,), generator=generator))


def data(*names: str) -> dict[str, Any]:
    return {name: points(name, seed) for seed, name in enumerate(names)}


def test_one_model_and_equal_models() -> None:
    model = network(1)
    for names in (["a"], ["a", "b", "c"]):
        merged = fuse(FisherMerging(), dict.fromkeys(names, model), data=data(*names))
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(merged.state_dict()[name], tensor)


def test_order_and_threads_change_nothing() -> None:
    models = {"a": network(1), "b": network(2)}
    one = fuse(FisherMerging(), models, data=data("a", "b")).state_dict()
    other = fuse(FisherMerging(), dict(reversed(models.items())), data=data("a", "b"), threads=3).state_dict()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-12, atol=1e-14)


def test_excluded_tensors_and_buffers_are_averaged() -> None:
    def make(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        layers = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3)).double()
        layers[1].running_mean += torch.randn(6)  # type: ignore[operator]
        return layers.eval()

    models = {"a": make(1), "b": make(2)}
    merged = fuse(FisherMerging(exclude=(r"^2\.",)), models, data=data("a", "b")).state_dict()
    first, second = (m.state_dict() for m in models.values())
    for name in ("2.weight", "2.bias", "1.running_mean"):
        torch.testing.assert_close(merged[name], (first[name] + second[name]) / 2)
    assert not torch.allclose(merged["0.weight"], (first["0.weight"] + second["0.weight"]) / 2, atol=1e-3)


def test_what_is_recorded() -> None:
    from fusion_bench.api import inputs_of
    from fusion_bench.fit import fit, module_fitting
    from fusion_bench.modelpool.base import ModelPool

    models = {"a": network(1), "b": network(2)}
    pool = ModelPool({name: MemoryCheckpoint.of_module(m) for name, m in models.items()})
    method = FisherMerging(examples=10)
    fitted = fit(method, inputs_of(method, pool), module_fitting(network(0), data("a", "b")))
    assert fitted.record["statistics"]["a"]["examples"] == 10
    assert sum(fitted.record["factors"].values()) == pytest.approx(1)
    assert set(fitted.record["norms"]) == {"a", "b"}
    assert fitted.remarks == ("4 of 4 tensors are weighted by Fisher information",)


def test_labels_are_declared_where_they_are_looked_at() -> None:
    assert FisherMerging(estimator="empirical").reads_labels
    assert not FisherMerging().reads_labels


def test_faults() -> None:
    models = {"a": network(1), "b": network(2)}
    for fields, word in (
        ({"exclude": ("(",)}, "regular expression"),
        ({"exclude": ("nowhere",)}, "nowhere"),
        ({"weights": (1.0, -1.0)}, "at least 0"),
        ({"weights": (0.0, 0.0)}, "above 0"),
        ({"weights": (1.0,)}, "1 weights for 2"),
    ):
        with pytest.raises(ConfigError, match=word):
            fuse(FisherMerging(**fields), models, data=data("a", "b"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no data for b"):
        fuse(FisherMerging(), models, data=data("a"))
    with torch.no_grad():
        models["b"][2].weight[1, 1] = torch.inf  # type: ignore[index, union-attr]
    with pytest.raises(NonFiniteError, match=r"'b'.*'2\.weight'"):
        fuse(FisherMerging(), models, data=data("a", "b"))
