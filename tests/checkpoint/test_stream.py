"""Visiting slices in threads: all of them, once, in bounds, and stopping at the first fault."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.stream import for_each_slice

TENSORS = {
    "a": torch.randn(100),
    "b": torch.randn(7, 9),
    "c": torch.arange(10),
    "empty": torch.empty(0),
    "d": torch.tensor(2.0),
}


@pytest.fixture(params=["memory", "file"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    if request.param == "memory":
        return MemoryCheckpoint(TENSORS)
    save_file(TENSORS, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("block", [1, 16, 1000])
def test_every_entry_is_visited_once(checkpoint: Checkpoint, threads: int, block: int) -> None:
    found = {name: torch.zeros(tensor.numel(), dtype=tensor.dtype) for name, tensor in TENSORS.items()}
    seen = {name: torch.zeros(tensor.numel()) for name, tensor in TENSORS.items()}

    def visit(name: str, start: int, values: torch.Tensor) -> None:
        assert values.numel() <= block
        assert start % block == 0
        found[name][start : start + values.numel()] = values
        seen[name][start : start + values.numel()] += 1

    for_each_slice(checkpoint, checkpoint, visit, threads=threads, block=block)
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor.reshape(-1))
        assert bool((seen[name] == 1).all())


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_exception_stops_everything(checkpoint: Checkpoint, threads: int) -> None:
    visits: list[int] = []

    def visit(name: str, start: int, values: torch.Tensor) -> None:
        visits.append(start)
        if len(visits) == 5:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        for_each_slice(checkpoint, checkpoint, visit, threads=threads, block=1)
    assert len(visits) < 5 + 2 * threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slices")]


def test_interrupt_stops_the_workers(checkpoint: Checkpoint) -> None:
    def visit(name: str, start: int, values: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for_each_slice(checkpoint, checkpoint, visit, threads=2, block=4)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slices")]


def test_torch_threads_are_one_meanwhile_and_restored(checkpoint: Checkpoint) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    inside: set[int] = set()
    try:
        for threads in (1, 2):
            for_each_slice(checkpoint, ["a"], lambda *_: inside.add(torch.get_num_threads()), threads=threads, block=8)
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert inside == {1}


def test_visitors_may_overwrite_what_they_get(checkpoint: Checkpoint) -> None:
    for_each_slice(checkpoint, checkpoint, lambda name, start, values: values.fill_(7), block=8)
    assert torch.equal(checkpoint["a"], TENSORS["a"])
