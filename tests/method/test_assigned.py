"""A method for every tensor by its name."""

from __future__ import annotations

import torch

from fusion_bench.api import fuse
from fusion_bench.build import build
from fusion_bench.method import method_class
from fusion_bench.method.assigned import Assigned
from fusion_bench.method.base import TensorMethod


def method(key: str, **values: object) -> TensorMethod:
    made = build(method_class(key), values, "method")
    assert isinstance(made, TensorMethod)
    return made


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(6, 4, generator=generator, dtype=torch.float64) for name in ("a", "b", "c", "d")}


BASE, MODELS = state(0), {"x": state(1), "y": state(2)}


def test_each_tensor_has_its_own_method() -> None:
    chosen = {
        "a": method("slerp", t=0.3),
        "b": method("simple_average"),
        "c": method("weighted_average", weights=[1, 3]),
    }
    found = fuse(Assigned(methods={**chosen, "d": method("simple_average")}), MODELS, BASE)
    for name, each in {**chosen, "d": chosen["b"]}.items():
        alone = fuse(each, {key: {name: model[name]} for key, model in MODELS.items()}, {name: BASE[name]})
        assert torch.equal(found[name], alone[name]), name


def test_equal_methods_are_one() -> None:
    """Equal hyperparameters merge together: a threshold over the whole model spans their tensors."""
    ties = [method("ties_merging", threshold=30) for _ in "abc"]
    assigned = Assigned(methods={**dict(zip("abc", ties, strict=True)), "d": method("task_arithmetic")})
    assert len(assigned.distinct) == 2
    assert assigned.needs_base
    found = fuse(assigned, MODELS, BASE)
    part = [{name: values[name] for name in "abc"} for values in (*MODELS.values(), BASE)]
    alone = fuse(ties[0], {"x": part[0], "y": part[1]}, part[2])
    assert all(torch.equal(found[name], alone[name]) for name in "abc")


def test_one_pointwise_method_stays_pointwise() -> None:
    average = method("simple_average")
    assert Assigned(methods=dict.fromkeys("abcd", average)).pointwise
    assert not Assigned(methods={"a": average, "b": method("slerp")}).pointwise
    found = fuse(Assigned(methods=dict.fromkeys("abcd", average)), MODELS)
    alone = fuse(average, MODELS)
    assert all(torch.equal(found[name], alone[name]) for name in "abcd")
