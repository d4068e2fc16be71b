"""Hyperparameters are checked however an algorithm is made; adapters fuse alike however they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_bench import SimpleAverage, TaskArithmetic, TiesMerging, WeightedAverage, fuse, open_modelpool
from fusion_bench.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TaskArithmetic(scaling_factor="x"), r"method\.scaling_factor=x"),  # type: ignore[arg-type]
        (lambda: TiesMerging(threshold=300.0), r"method\.threshold=300"),
        (lambda: TiesMerging(merge_func="men"), "mean"),  # type: ignore[arg-type]
        (lambda: TiesMerging(weights=(float("nan"),)), r"method\.weights"),
    ],
)
def test_constructors_check(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_plain_values_become_the_declared_ones() -> None:
    method = WeightedAverage(weights=[1, 2])  # type: ignore[arg-type]
    assert method.weights == (1.0, 2.0)
    assert isinstance(TaskArithmetic(scaling_factor=1).scaling_factor, float)


def test_adapters_given_as_paths_and_as_a_pool(tiny: Any, tmp_path: Path) -> None:
    """Half-precision bases: an adapter is not rounded to its base's dtype before the fusion."""
    model = tiny.t5()
    model.to(torch.float16).save_pretrained(tmp_path / "base")
    for number, name in enumerate("xy"):
        tiny.lora(model.float(), tmp_path / name, number, "../base")
    paths = {name: tmp_path / name for name in "xy"}
    given = fuse(SimpleAverage(), paths, base=tmp_path / "base")
    pooled = fuse(SimpleAverage(), open_modelpool({"type": "folder", "path": str(tmp_path)}))
    assert list(given) == list(pooled)
    for name in given:
        assert torch.equal(given[name], pooled[name])


def test_remarks_say_what_hyperparameters_do_not() -> None:
    base = {"w": torch.zeros(100), "steps": torch.tensor(3), "v": torch.ones(4)}
    sparse = {**base, "w": torch.cat([torch.ones(10), torch.zeros(90)])}
    dense = {"w": torch.arange(100.0), "steps": torch.tensor(4), "v": torch.ones(4, dtype=torch.bfloat16)}
    from fusion_bench.api import fuse_pool
    from fusion_bench.checkpoint.memory import MemoryCheckpoint
    from fusion_bench.modelpool.base import ModelPool

    pool = ModelPool({"sparse": MemoryCheckpoint(sparse), "dense": MemoryCheckpoint(dense)}, MemoryCheckpoint(base))
    fused: Any = fuse_pool(TiesMerging(), pool)
    dtypes, integers, trimming = fused.checkpoint.remarks()
    assert "'dense'" in dtypes
    assert "BF16" in dtypes
    assert "'steps' differs in dense" in integers
    assert trimming.startswith("trimming had no effect on sparse: fewer than 20 %")


def test_half_precision_overflow_is_refused() -> None:
    from fusion_bench.errors import NonFiniteError

    models = [{"w": torch.full((4,), 60000.0, dtype=torch.float16)}]
    with pytest.raises(NonFiniteError, match="float16"):
        fuse(TaskArithmetic(scaling_factor=3.0), models, {"w": torch.zeros(4, dtype=torch.float16)})


def test_patterns_that_match_nothing_are_refused() -> None:
    base = {"a.bias": torch.zeros(2), "a.weight": torch.zeros(2, 2)}
    with pytest.raises(ConfigError, match=r"remove_keys.*nomatch"):
        fuse(TiesMerging(remove_keys=("nomatch*",)), [base], base)
    fuse(TiesMerging(remove_keys=("*.bias",)), [base], base)


def test_modules_tied_differently_are_refused() -> None:
    from fusion_bench.errors import AlignmentError

    def make(tied: bool) -> torch.nn.Module:
        module = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
        if tied:
            module["b"].weight = module["a"].weight
        return module

    with pytest.raises(AlignmentError, match="one tensor"):
        fuse(SimpleAverage(), [make(True), make(False)])


def test_what_python_is_told(pool: Path) -> None:
    with pytest.raises(ConfigError, match="one model alone"):
        fuse(SimpleAverage(), {"w": torch.zeros(2)})
    with pytest.raises(ConfigError, match="one model alone"):
        fuse(SimpleAverage(), torch.nn.Linear(2, 2))
    opened = open_modelpool({"type": "folder", "path": str(pool)})
    with pytest.raises(ConfigError, match="'d'"):
        opened.load_model("d")
    merged = fuse(SimpleAverage(), pool, dtype=torch.bfloat16)
    assert {merged[name].dtype for name in merged} == {torch.bfloat16}
    module = fuse(SimpleAverage(), [torch.nn.Linear(2, 2)], dtype="bfloat16")
    assert module.weight.dtype == torch.bfloat16
