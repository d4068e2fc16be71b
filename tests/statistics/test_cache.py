"""What was measured is measured once."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from statistics_cases import Questions, cached, mlp, points, t5_fitting

from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.structure import Structure
from fusion_bench.statistics import Statistics, cache, diagonal_fisher, input_grams


class Counted:
    """A load that counts, around another."""

    def __init__(self, load: Any) -> None:
        self.load, self.count = load, 0

    def __call__(self, checkpoint: Any) -> Any:
        self.count += 1
        return self.load(checkpoint)


def same(one: Statistics, other: Statistics) -> bool:
    return one.index == other.index and all(torch.equal(one[name], other[name]) for name in one.index)


@pytest.mark.parametrize("kind", ["fisher", "grams"])
def test_a_hit_runs_nothing(tmp_path: Path, kind: str) -> None:
    module, data = mlp(1), points("p", 2)
    checkpoint = MemoryCheckpoint.of_module(module)
    fitting = cached(module, data, tmp_path)
    load = Counted(fitting.load)
    fitting = replace(fitting, load=load)
    structure = Structure(linear=frozenset({"0.weight", "2.weight"}))

    def measure() -> Statistics:
        if kind == "fisher":
            return diagonal_fisher("p", checkpoint, fitting)
        return input_grams("p", checkpoint, fitting, structure)

    first = measure()
    assert load.count == 1
    second = measure()
    assert load.count == 1
    assert same(first, second)
    assert second.record == {**first.record, "from_cache": True}
    assert "from_cache" not in first.record


def test_no_forward_on_a_hit(tmp_path: Path, tiny: Any) -> None:
    model, data = tiny.t5(1), Questions("q", 2)
    fitting = t5_fitting({"q": data}, torch.float32, identity={"q": "it"}, cache=tmp_path)
    checkpoint = MemoryCheckpoint.of_module(model)
    diagonal_fisher("q", checkpoint, fitting, examples=2)
    ran = data.forwards
    assert ran == 2
    diagonal_fisher("q", checkpoint, fitting, examples=2)
    assert data.forwards == ran


def test_what_decides_the_numbers_decides_the_file(tmp_path: Path) -> None:
    module, data = mlp(1), points("p", 2)
    checkpoint = MemoryCheckpoint.of_module(module)
    fitting = cached(module, data, tmp_path)
    load = Counted(fitting.load)
    fitting = replace(fitting, load=load)
    calls: list[tuple[Any, ...]] = [
        (fitting, "true", 20), (fitting, "true", 10), (fitting, "empirical", 20), (fitting, "fusionbench", 20, 4),
        (fitting, "fusionbench", 20, 8), (fitting, "sampled", 20), (replace(fitting, seed=1), "sampled", 20),
        (replace(fitting, identity={"p": "another"}), "true", 20),
        (replace(fitting, tasks={"p": points("p", 3)}), "true", 20),
    ]  # fmt: skip
    for number, call in enumerate(calls, 1):
        diagonal_fisher("p", checkpoint, *call)
        assert load.count == number
    # The seed and the batch size do not touch the exact estimator, nor do examples beyond the last.
    for call in ((replace(fitting, seed=5), "true", 20, 7), (fitting, "true", 21)):
        diagonal_fisher("p", checkpoint, *call)
    assert load.count == len(calls)


def test_damaged_files_are_measured_anew(tmp_path: Path) -> None:
    module, data = mlp(1), points("p", 2)
    checkpoint = MemoryCheckpoint.of_module(module)
    fitting = cached(module, data, tmp_path)
    first = diagonal_fisher("p", checkpoint, fitting)
    values = {name: first[name].clone() for name in first.index}
    for name, damage in (
        ("model.safetensors", lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]),
        ("model.safetensors", lambda raw: raw[: len(raw) // 2]),
        ("statistics.json", lambda raw: raw[:20]),
        ("statistics.json", lambda raw: raw.replace(b'"true"', b'"sure"')),
    ):
        (file,) = tmp_path.rglob(name)
        file.write_bytes(damage(file.read_bytes()))
        again = diagonal_fisher("p", checkpoint, fitting)
        assert "from_cache" not in again.record
        assert all(torch.equal(again[name], value) for name, value in values.items())
        assert diagonal_fisher("p", checkpoint, fitting).record["from_cache"]


@pytest.mark.parametrize("absent", ["identity", "cache", "digest", "empty"])
def test_nothing_is_kept_without_knowing_what_it_is_of(tmp_path: Path, absent: str) -> None:
    module, data = mlp(1), points("p", 2)
    fitting = cached(module, data, tmp_path)
    if absent == "digest":
        data.digest = ""
    elif absent == "empty":
        fitting = replace(fitting, identity={"p": {}})
    else:
        fitting = replace(fitting, **{absent: None})  # type: ignore[arg-type]
    diagonal_fisher("p", MemoryCheckpoint.of_module(module), fitting)
    assert not list(tmp_path.iterdir())


def test_large_statistics_leave_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_IN_MEMORY", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    module, data = mlp(1), points("p", 2)
    fitting = replace(cached(module, data, tmp_path), cache=None)
    found = diagonal_fisher("p", MemoryCheckpoint.of_module(module), fitting)
    assert found.held == 0
    assert list(tmp_path.iterdir())
    monkeypatch.setattr(cache, "_IN_MEMORY", 10**9)
    kept = diagonal_fisher("p", MemoryCheckpoint.of_module(module), fitting)
    assert kept.held == 8 * (24 + 6 + 18 + 3)
    assert same(found, kept)
    del found
    gc.collect()
    assert not list(tmp_path.iterdir())
