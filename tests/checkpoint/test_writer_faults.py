"""Faults while writing: nothing half-written is left, and nothing that was there is lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fusion_bench
from fusion_bench.checkpoint.contents import PARTIAL
from fusion_bench.checkpoint.manifest import MANIFEST
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import is_model_folder, open_checkpoint
from fusion_bench.checkpoint.writer import save
from fusion_bench.errors import CheckpointError, FusionError, OutputError


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


class Faulty(MemoryCheckpoint):
    """Fails at the n-th read."""

    def __init__(self, tensors: dict[str, torch.Tensor], fail_at: int, error: BaseException) -> None:
        super().__init__(tensors)
        self.left, self.error = fail_at, error

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error
        super().read_into(name, start, out)


@pytest.mark.parametrize(
    "error", [CheckpointError("cut"), RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "I/O")]
)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_fault_leaves_nothing(tmp_path: Path, error: BaseException, threads: int) -> None:
    tensors = {f"t{i}": torch.ones(100) for i in range(10)}
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        save(Faulty(tensors, 25, error), tmp_path / "deep" / "out", threads=threads, block=10, shard_bytes=1000)
    assert not (tmp_path / "deep").exists()


def test_a_fault_leaves_the_former_output_alone(tmp_path: Path) -> None:
    save(MemoryCheckpoint({"x": torch.ones(2)}, config={"a": 1}), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    with pytest.raises(RuntimeError):
        save(Faulty({"x": torch.zeros(100)}, 3, RuntimeError()), tmp_path, block=10, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, written = os.pwrite, 0

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        nonlocal written
        written += len(data)
        if written > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return honest(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        save(MemoryCheckpoint({"x": torch.ones(10_000)}), tmp_path / "out", block=100, threads=2)
    assert isinstance(caught.value, FusionError)
    assert not (tmp_path / "out").exists()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: honest(fd, data[:11], at))
    save(MemoryCheckpoint({"x": torch.arange(500)}), tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["x"], torch.arange(500))


def test_a_killed_process_leaves_no_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
import time, torch
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.writer import save
class Slow(MemoryCheckpoint):
    def read_into(self, name, start, out):
        if start > 3000:
            print("half", flush=True)
            time.sleep(60)
        super().read_into(name, start, out)
save(Slow({{"x": torch.ones(5000)}}, config={{"a": 1}}), {str(out)!r}, block=100)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(fusion_bench.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert names_in(out) == {PARTIAL}
    for folder in (out, out / PARTIAL):
        assert not is_model_folder(folder)
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
    # The next run clears the remains without being asked to overwrite.
    save(MemoryCheckpoint({"x": torch.ones(5)}), out)
    assert names_in(out) == {"model.safetensors", MANIFEST}


@pytest.mark.parametrize(("shard_bytes", "last"), [(50, "config.json"), (None, "model.safetensors")])
def test_what_makes_a_model_appears_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int | None, last: str
) -> None:
    honest, moved = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if Path(target).parent == tmp_path:
            moved.append(Path(target).name)
            assert not is_model_folder(tmp_path)
        honest(source, target)

    monkeypatch.setattr(os, "replace", replace)
    tensors = {f"t{i}": torch.ones(10) for i in range(3)}
    for _ in range(2):
        checkpoint = MemoryCheckpoint(tensors, config={"a": 1})
        save(checkpoint, tmp_path, shard_bytes=shard_bytes, extra_files={"z.txt": "z"}, overwrite=True)
        assert is_model_folder(tmp_path)
        assert moved[-1] == last
        assert MANIFEST in moved
