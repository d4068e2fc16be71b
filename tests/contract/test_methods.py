"""What holds of every fusion algorithm: a new file in the registry is under test without anyone listing it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_bench.api import fuse as fuse_with
from fusion_bench.build import build, defaults, range_text
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.writer import save
from fusion_bench.errors import ConfigError
from fusion_bench.method import class_names, method_class, method_modules
from fusion_bench.method.base import CheckpointMethod, ModelFusionAlgorithm, TensorMethod
from fusion_bench.method.fitted import FittedMethod

METHODS = list(method_modules())
TENSOR = [key for key in METHODS if issubclass(method_class(key), (TensorMethod, FittedMethod))]

State = dict[str, torch.Tensor]

# Methods that look at data look at little here.
QUICK = {"steps": 3, "examples": 8, "batch_size": 4, "iterations": 5}


def quick(key: str, **values: Any) -> ModelFusionAlgorithm:
    """The algorithm with its defaults, less the long work of those that look at data."""
    cls = method_class(key)
    names = {f.name for f in dataclasses.fields(cls)}
    few = {name: value for name, value in QUICK.items() if name in names and issubclass(cls, FittedMethod)}
    return build(cls, {**few, **values}, "method")


def fuse(algorithm: ModelFusionAlgorithm, models: Any, base: Any = None, **how: Any) -> Any:
    """Fuses; a method that looks at data is given some, and a module that bears the tensors' names."""
    from tests.contract.toy import Toy, ToyData

    if isinstance(algorithm, FittedMethod):
        named = models if isinstance(models, dict) else {f"model_{i}": None for i in range(len(models))}
        how["data"] = {name: ToyData(name) for name in named}
        sample = base if base is not None else next(iter(models.values()))
        if "module" not in how and not isinstance(sample, torch.nn.Module):
            how["module"] = Toy({name: sample[name] for name in sample})
    return fuse_with(algorithm, models, base, **how)


def state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    """Shapes that go wrong easily: a scalar, one entry, a column, an empty tensor, more than one slice, integers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(), (1,), (7,), (5, 3), (3, 5), (2, 3, 4), (9, 1), (0, 4), (700, 900)]
    tensors: State = {f"w{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(shapes)}
    tensors["steps"] = torch.tensor(11, dtype=torch.int64)
    tensors["positions"] = torch.arange(6)
    return tensors


def near(base: State, seed: int, size: float = 0.05) -> State:
    moved = state(seed)
    return {k: base[k] + size * moved[k].to(base[k].dtype) if base[k].is_floating_point() else base[k] for k in base}


def pool(dtype: torch.dtype = torch.float32) -> tuple[dict[str, State], State]:
    base = state(0, dtype)
    return {name: near(base, number + 1) for number, name in enumerate("abc")}, base


def most(key: str) -> int:
    """How many models of the pool the method takes."""
    return min(3, method_class(key).model_counts[1] or 3)


def pool_for(key: str, dtype: torch.dtype = torch.float32) -> tuple[dict[str, State], State]:
    models, base = pool(dtype)
    return dict(list(models.items())[-most(key) :]), base


def outputs(key: str, fused: Any) -> dict[str, Any]:
    """The results of a fusion by task; one for all tasks stands under an empty name."""
    return fused if getattr(method_class(key), "per_task", False) else {"": fused}


def method(key: str, case: str | None = None, count: int = 1) -> ModelFusionAlgorithm | None:
    """The algorithm with the hyperparameters under which the identity law `case` holds; None where it never does."""
    cls = method_class(key)
    if case is None:
        return quick(key)
    values = cls.identity[case]
    if values is None:
        return None
    return quick(key, **filled(values, count))


def filled(value: Any, count: int) -> Any:
    """`value` with every "1/N" in it replaced by its number."""
    if isinstance(value, dict):
        return {name: filled(inside, count) for name, inside in value.items()}
    return 1 / count if value == "1/N" else value


@pytest.mark.parametrize("key", METHODS)
def test_declaration(key: str) -> None:
    cls = method_class(key)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert class_names()[cls.__name__] == key
    assert cls.category in ("ensembling", "merging", "mixing")
    assert f".{cls.category}." in cls.__module__
    assert "arXiv" in cls.source
    assert cls.source.rsplit(" ", 1)[-1] in (cls.__doc__ or "")
    assert set(cls.identity) == {"one", "equal"}
    for field in dataclasses.fields(cls):
        assert field.metadata.get("doc"), f"{key}.{field.name} says nothing of itself"
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", METHODS)
def test_defaults_build_and_round_trip(key: str) -> None:
    cls = method_class(key)
    assert build(cls, defaults(cls), "method") == cls()


@pytest.mark.parametrize("key", METHODS)
def test_unknown_hyperparameter(key: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.nonsense"):
        build(method_class(key), {"nonsense": 1}, "method")


@pytest.mark.parametrize(
    ("key", "field"),
    [(key, f) for key in METHODS for f in dataclasses.fields(method_class(key)) if range_text(f.metadata)],
    ids=lambda value: getattr(value, "name", value),
)
def test_bounds(key: str, field: Any) -> None:
    """At its bounds a hyperparameter works; beyond them it is refused by name and value."""
    cls = method_class(key)
    models, base = pool_for(key)
    for bound, inside in (("low", True), ("high", True), ("above", False), ("below", False)):
        value = field.metadata.get(bound)
        if value is None:
            continue
        if inside:
            fused = fuse(quick(key, **{field.name: value}), models, base)
            for out in outputs(key, fused).values():
                assert all(torch.isfinite(t).all() for t in out.values() if t.is_floating_point())
        beyond = value - 1 if bound == "low" else value + 1 if bound == "high" else value
        with pytest.raises(ConfigError, match=rf"method\.{field.name}={beyond:g}|method\.{field.name}={beyond}"):
            build(cls, {field.name: beyond}, "method")


def test_reading_every_class_imports_no_torch() -> None:
    code = (
        "import sys, dataclasses\n"
        "from fusion_bench.method import method_modules, method_class\n"
        "from fusion_bench.build import defaults\n"
        "for key in method_modules(): defaults(method_class(key))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", METHODS)
def test_names_shapes_dtypes_and_integers_are_kept(key: str, dtype: torch.dtype) -> None:
    models, base = pool_for(key, dtype)
    for out in outputs(key, fuse(quick(key), models, base)).values():
        assert {n: (t.shape, t.dtype) for n, t in out.items()} == {n: (t.shape, t.dtype) for n, t in base.items()}
        assert torch.equal(out["steps"], base["steps"])
        assert torch.equal(out["positions"], base["positions"])


@pytest.mark.parametrize("key", METHODS)
def test_inputs_are_left_alone(key: str) -> None:
    models, base = pool_for(key)
    before = [{n: t.clone() for n, t in tensors.items()} for tensors in (base, *models.values())]
    fuse(quick(key), models, base)
    for tensors, copy in zip((base, *models.values()), before, strict=True):
        assert all(torch.equal(tensors[name], copy[name]) for name in copy)


@pytest.mark.parametrize("key", METHODS)
def test_one_model_is_that_model(key: str) -> None:
    algorithm = method(key, "one")
    if algorithm is None:
        pytest.skip("the law does not hold for this method, by its definition")
    models, base = pool_for(key)
    for out in outputs(key, fuse(algorithm, {"c": models["c"]}, base)).values():
        for name, tensor in models["c"].items():
            torch.testing.assert_close(out[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", METHODS)
def test_equal_models_fuse_to_that_model(key: str) -> None:
    algorithm = method(key, "equal", count=most(key))
    if algorithm is None:
        pytest.skip("the law does not hold for this method, by its definition")
    models, base = pool_for(key)
    for out in outputs(key, fuse(algorithm, dict.fromkeys(models, models["c"]), base)).values():
        for name, tensor in models["c"].items():
            torch.testing.assert_close(out[name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", [key for key in METHODS if method_class(key).symmetric])
def test_order_does_not_matter(key: str) -> None:
    models, base = pool_for(key)
    fused = outputs(key, fuse(quick(key), models, base))
    turned = outputs(key, fuse(quick(key), dict(reversed(models.items())), base))
    for task, out in fused.items():
        for name in out:
            torch.testing.assert_close(out[name], turned[task][name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", [k for k in METHODS if "scaling_factor" in defaults(method_class(k))])
def test_factor_zero_is_the_base_bit_for_bit(key: str) -> None:
    models, base = pool_for(key)
    fused = fuse(quick(key, scaling_factor=0.0), models, base)
    for out in outputs(key, fused).values():
        assert all(torch.equal(out[name], base[name]) for name in base)


@pytest.mark.parametrize("key", [k for k in METHODS if method_class(k).needs_base])
def test_models_equal_to_the_base_give_the_base(key: str) -> None:
    models, base = pool_for(key)
    for out in outputs(key, fuse(quick(key), dict.fromkeys(models, base), base)).values():
        for name in base:
            torch.testing.assert_close(out[name], base[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", [k for k in METHODS if method_class(k).needs_base])
def test_missing_base_is_refused(key: str) -> None:
    models, _ = pool_for(key)
    with pytest.raises(ConfigError, match="base"):
        fuse(quick(key), models)


@pytest.mark.parametrize("key", METHODS)
def test_streamed_equals_in_memory_bit_for_bit(key: str, tmp_path: Path) -> None:
    """Files or memory, shards, threads, the sizes of reads: no byte may depend on them."""
    models, base = pool_for(key)
    algorithm = quick(key)
    references = outputs(key, fuse(algorithm, models, base))
    folders = {}
    for number, (name, tensors) in enumerate([("base", base), *models.items()]):
        folders[name] = tmp_path / name
        save(MemoryCheckpoint(tensors), folders[name], shard_bytes=[None, 10_000, 10**6, 333_333][number])
    opened = {name: open_checkpoint(folder) for name, folder in folders.items()}
    fused = outputs(key, fuse(algorithm, {name: opened[name] for name in models}, opened["base"], threads=3))
    for task, reference in references.items():
        streamed, out = fused[task], tmp_path / f"out-{task}"
        save(streamed, out, threads=3, shard_bytes=200_000, block=77_777)
        written = open_checkpoint(out)
        for name, tensor in reference.items():
            assert torch.equal(written[name], tensor), name
            assert torch.equal(streamed[name], tensor), name
        parts = [streamed.read("w8", start, min(start + 99_999, 630_000)) for start in range(0, 630_000, 99_999)]
        assert torch.equal(torch.cat(parts), reference["w8"].reshape(-1))


@pytest.mark.parametrize("key", TENSOR)
def test_not_a_number_is_refused(key: str) -> None:
    from fusion_bench.errors import NonFiniteError

    models, base = pool_for(key)
    models["c"]["w3"][2, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'c'.*'w3'"):
        fuse(quick(key), models, base)


@pytest.mark.parametrize("key", METHODS)
def test_modules_in_module_out(key: str) -> None:
    def make(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))

    base, models = make(0), [make(1), make(2)][: most(key)]
    modules = outputs(key, fuse(quick(key), models, base))
    states = [m.state_dict() for m in models]
    expected = outputs(key, fuse(quick(key), states, base.state_dict(), module=base))
    for task, out in modules.items():
        assert isinstance(out, torch.nn.Sequential)
        assert out is not base
        for name, tensor in out.state_dict().items():
            assert torch.equal(tensor, expected[task][name])


def test_kinds() -> None:
    for key in METHODS:
        assert issubclass(method_class(key), (TensorMethod, CheckpointMethod, FittedMethod))
