"""An output that was cut short is continued by the same command, and by no other."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fusion_bench
from fusion_bench.checkpoint.contents import JOURNAL, LOCK, ORIGIN, PARTIAL
from fusion_bench.checkpoint.journal import Journal
from fusion_bench.checkpoint.manifest import MANIFEST
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import is_model_folder
from fusion_bench.checkpoint.output import check_space, check_writable
from fusion_bench.checkpoint.verify import verify
from fusion_bench.checkpoint.writer import Saved, save
from fusion_bench.errors import CheckpointError, OutputError

ORIGIN_A = {"method": {"name": "alpha", "factor": 0.5}, "seed": 1, "sizes": (1, 2)}
ORIGIN_B = {"method": {"name": "beta"}, "seed": 1, "sizes": (1, 2)}
CUTS = {"block": 10, "shard_bytes": 2000}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"t{i}": torch.randn(97, generator=generator) for i in range(9)}


class Counting(MemoryCheckpoint):
    """Counts reads, and fails at one of them."""

    def __init__(self, values: dict[str, torch.Tensor], fail_at: int = -1, error: BaseException | None = None) -> None:
        super().__init__(values, config={"a": 1})
        self.reads, self.fail_at, self.error = 0, fail_at, error

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        self.reads += 1
        if self.reads == self.fail_at and self.error is not None:
            raise self.error
        super().read_into(name, start, out)


def files(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files that an uninterrupted run of origin A writes."""
    save(Counting(tensors()), tmp_path / "whole", origin=ORIGIN_A, **CUTS)
    return files(tmp_path / "whole")


@pytest.fixture
def half(tmp_path: Path, whole: dict[str, bytes]) -> Path:
    """The output of origin A, interrupted at its 40th read of 90."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        save(Counting(tensors(), 40, KeyboardInterrupt()), out, origin=ORIGIN_A, **CUTS)
    assert [entry.name for entry in out.iterdir()] == [PARTIAL]
    return out


def finish(out: Path, expected: dict[str, bytes], **others: Any) -> tuple[Saved, int]:
    """Runs the command of origin A to its end; what it did and how many slices it computed."""
    checkpoint = Counting(tensors())
    saved = save(checkpoint, out, origin=ORIGIN_A, **CUTS, **others)
    assert files(out) == expected
    assert not (out / PARTIAL).exists()
    return saved, checkpoint.reads


def test_the_rest_is_computed(half: Path, whole: dict[str, bytes]) -> None:
    assert check_writable(half, origin=ORIGIN_A) == "unfinished"
    saved, reads = finish(half, whole)
    assert (saved.how, reads) == ("continued", 90 - 39)
    assert saved.reused == 4 * (3 * 97 + 9 * 10)  # the tenth slice of a tensor holds 7 entries
    assert check_writable(half, origin=ORIGIN_A) == "complete"
    assert finish(half, whole) == (Saved("complete", 4 * 9 * 97), 0)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O error"), SystemExit(143)]
)
@pytest.mark.parametrize("threads", [1, 3])
def test_what_may_be_over_next_time_is_kept(
    tmp_path: Path, whole: dict[str, bytes], error: BaseException, threads: int
) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises((OutputError, SystemExit)) as caught:
        save(Counting(tensors(), 40, error), out, origin=ORIGIN_A, threads=threads, **CUTS)
    if isinstance(error, OSError):
        assert error.strerror in str(caught.value)
        assert "the same command continues it" in str(caught.value)
    saved, reads = finish(out, whole, threads=threads)
    assert saved.how == "continued"
    assert reads <= 90 - 37


def test_what_repeats_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        save(Counting(tensors(), 40, CheckpointError("cut")), tmp_path / "deep" / "out", origin=ORIGIN_A, **CUTS)
    assert not (tmp_path / "deep").exists()


def test_nothing_done_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        save(Counting(tensors(), 1, KeyboardInterrupt()), tmp_path / "deep" / "out", origin=ORIGIN_A, **CUTS)
    assert not (tmp_path / "deep").exists()


def test_a_disk_that_is_full_again_and_again(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write may be the one that fails, that of the journal's line halfway included."""
    honest = os.write
    room = 0

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        if len(data) > room:
            if room > 5:
                room = 0
                return honest(descriptor, data[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= len(data)
        return honest(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    faults = []
    while True:
        room = 400 + len(faults)
        try:
            saved = save(Counting(tensors()), tmp_path / "out", origin=ORIGIN_A, **CUTS)
            break
        except OutputError as error:
            faults.append(str(error))
        assert not is_model_folder(tmp_path / "out")
    assert all("No space left" in fault for fault in faults)
    assert saved.how == "continued"
    assert len(faults) > 5
    assert files(tmp_path / "out") == whole


# What was kept may be damaged


def test_a_garbled_byte_is_computed_again(half: Path, whole: dict[str, bytes]) -> None:
    shard = half / PARTIAL / "model-00001-of-00002.safetensors.part"
    content = bytearray(shard.read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 13] ^= 1
    shard.write_bytes(content)
    assert finish(half, whole)[1] == 90 - 39 + 1


@pytest.mark.parametrize("keep", [0, 1, 200, -1, -30])
def test_a_cut_journal(half: Path, whole: dict[str, bytes], keep: int) -> None:
    journal = half / PARTIAL / JOURNAL
    content = journal.read_bytes()
    journal.write_bytes(content[:keep])
    # A line that lacks nothing but its end is as good as whole.
    lost = content.count(b"\n") - (content[:keep] + b"\n" * (keep == -1)).count(b"\n")
    assert finish(half, whole)[1] == 90 - 39 + lost


def test_every_garbled_byte_of_a_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    said = {3: [b"a" * 16, b"b" * 16], 12: [b"c" * 16], 4: []}
    for index, digests in said.items():
        journal.add(index, digests)
    assert journal.read() == said
    content = (tmp_path / "j").read_bytes()
    for at in range(len(content)):
        for value in (content[at] ^ 1, 0, 10, 32, 255):
            if value != content[at]:
                (tmp_path / "j").write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
                found = journal.read()
                assert all(said[index] == digests for index, digests in found.items())
                assert len(found) >= 1
    journal.close()


def test_missing_weights_or_origin(half: Path, whole: dict[str, bytes]) -> None:
    (half / PARTIAL / "model-00001-of-00002.safetensors.part").unlink()
    saved, reads = finish(half, whole)
    assert reads == 90
    assert saved == Saved("written", 0)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"origin": {"seed": 2}, "check": "0"}', b"\xff"])
def test_remains_that_nobody_can_continue_are_cleared(half: Path, whole: dict[str, bytes], content: bytes) -> None:
    (half / PARTIAL / ORIGIN).write_bytes(content)
    assert check_writable(half, origin=ORIGIN_B) == "nothing"
    assert finish(half, whole)[1] == 90


def test_another_layout_starts_over(half: Path, tmp_path: Path) -> None:
    checkpoint = Counting(tensors())
    assert save(checkpoint, half, origin=ORIGIN_A, block=20, shard_bytes=2000).how == "written"
    assert verify(half).whole


@pytest.mark.parametrize("number", range(1, 6))
def test_a_move_that_fails(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    out, honest, moves = tmp_path / "out", os.replace, []

    def replace(source: Any, target: Any) -> None:
        moves.append(target)
        if Path(target).parent == out and sum(Path(move).parent == out for move in moves) == number:
            raise OSError(errno.EIO, "I/O error")
        honest(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError, match=r"I/O error.*the same command continues it"):
        finish(out, whole)
    assert not is_model_folder(out)
    assert verify(out).unfinished
    monkeypatch.undo()
    with pytest.raises(OutputError, match="unfinished output of another command"):
        check_writable(out, origin=ORIGIN_B)
    assert check_writable(out, origin=ORIGIN_A) == "unfinished"
    assert finish(out, whole) == (Saved("complete", 4 * 9 * 97), 0)


# Whose it is


def test_another_command_is_refused(half: Path, whole: dict[str, bytes]) -> None:
    for origin in (ORIGIN_B, None):
        with pytest.raises(OutputError, match=r"unfinished output of another command \(method=alpha.*overwrite=true"):
            check_writable(half, origin=origin)
    with pytest.raises(OutputError, match=r"seed: 1, not 2"):
        check_writable(half, origin={**ORIGIN_A, "seed": 2})
    finish(half, whole)
    for origin in (ORIGIN_B, None):
        with pytest.raises(OutputError, match=r"output of another command \(method=alpha.*overwrite=true"):
            save(Counting(tensors(1)), half, origin=origin)
    assert files(half) == whole


def test_overwriting_keeps_the_former_until_the_new_is_whole(half: Path, whole: dict[str, bytes]) -> None:
    finish(half, whole)
    with pytest.raises(KeyboardInterrupt):
        save(Counting(tensors(1), 40, KeyboardInterrupt()), half, origin=ORIGIN_B, overwrite=True, **CUTS)
    assert files(half) == whole
    assert verify(half).whole
    assert check_writable(half, origin=ORIGIN_A) == "complete"
    again = Counting(tensors(1))
    assert save(again, half, origin=ORIGIN_B, overwrite=True, **CUTS).how == "continued"
    assert again.reads == 90 - 39
    assert torch.equal(load_file(half / "model-00001-of-00002.safetensors")["t0"], tensors(1)["t0"])


def test_overwriting_an_unfinished_output(half: Path) -> None:
    saved = save(Counting(tensors(1)), half, origin=ORIGIN_B, overwrite=True)
    assert saved == Saved("written", 0)
    assert sorted(files(half)) == ["config.json", MANIFEST, "model.safetensors"]


def test_own_damage(half: Path, whole: dict[str, bytes]) -> None:
    finish(half, whole)
    (half / "model-00001-of-00002.safetensors").write_bytes(b"short")
    with pytest.raises(
        OutputError, match=r"damaged: model-00001-of-00002.safetensors has 5 bytes, not.*overwrite=true"
    ):
        check_writable(half, origin=ORIGIN_A)
    assert finish(half, whole, overwrite=True) == (Saved("written"), 90)
    # Asked to overwrite, it reads what is there: whole, it is left alone; damaged inside, it is written anew.
    assert finish(half, whole, overwrite=True) == (Saved("complete", 4 * 9 * 97), 0)
    content = bytearray(whole["model-00002-of-00002.safetensors"])
    content[-1] ^= 4
    (half / "model-00002-of-00002.safetensors").write_bytes(content)
    assert finish(half, whole, overwrite=True) == (Saved("written"), 90)


def test_a_damaged_manifest(half: Path, whole: dict[str, bytes]) -> None:
    finish(half, whole)
    (half / MANIFEST).write_bytes(whole[MANIFEST].replace(b"alpha", b"alphb"))
    with pytest.raises(OutputError, match=r"fusion_bench.json is damaged.*overwrite=true|holds other files"):
        check_writable(half, origin=ORIGIN_A)
    finish(half, whole, overwrite=True)


def test_files_beside_a_complete_output(half: Path, whole: dict[str, bytes]) -> None:
    finish(half, whole)
    (half / "notes.txt").write_text("mine")
    assert save(Counting(tensors()), half, origin=ORIGIN_A, **CUTS).how == "complete"
    (half / "pytorch_model.bin").write_text("mine")
    with pytest.raises(OutputError, match=r"pytorch_model.bin"):
        save(Counting(tensors()), half, origin=ORIGIN_A, **CUTS)


def test_a_folder_of_that_name_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"holds \.partial"):
            save(Counting(tensors()), tmp_path, origin=ORIGIN_A, overwrite=overwrite)
    assert (tmp_path / PARTIAL / "thesis.tex").exists()


def test_room_for_the_rest_is_enough(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    held = sum(entry.stat().st_blocks * 512 for entry in (half / PARTIAL).iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))
    check_space(half, held + 100)
    with pytest.raises(OutputError, match="needs"):
        check_space(half, held + 101)


def test_two_runs_at_once(half: Path, whole: dict[str, bytes]) -> None:
    descriptor = os.open(half / PARTIAL / LOCK, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for call in (lambda: check_writable(half, True, ORIGIN_A), lambda: finish(half, whole)):
        with pytest.raises(OutputError, match="another run is writing there"):
            call()
    os.close(descriptor)
    finish(half, whole)


def test_many_processes_at_once(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Whichever wins writes it; the others are told, or find it complete."""
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_resume import *
try:
    print(save(Counting(tensors()), {str(tmp_path / "out")!r}, origin=ORIGIN_A, **CUTS).how)
except OutputError as error:
    print("busy" if "another run is writing" in str(error) else error)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(fusion_bench.__file__).parents[1])}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    said = [run.communicate()[0].strip() for run in runs]
    assert "written" in said
    assert set(said) <= {"written", "busy", "complete"}
    assert files(tmp_path / "out") == whole


# A kill at every operation on files

_OPERATIONS = ("mkdir", "rmdir", "unlink", "replace", "ftruncate", "pwrite", "write", "fsync")


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Does the work in a process that dies before its operation `number`; whether it died."""
    child = os.fork()
    if child == 0:
        try:
            count = 0

            def dying(honest: Callable[..., Any]) -> Callable[..., Any]:
                def operation(*arguments: Any, **named: Any) -> Any:
                    nonlocal count
                    count += 1
                    if count > number:
                        os._exit(9)
                    return honest(*arguments, **named)

                return operation

            for name in _OPERATIONS:
                setattr(os, name, dying(getattr(os, name)))
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.parametrize(
    ("former", "shard_bytes"), [(None, None), (None, 2000), ("shards", None), ("single", None), ("single", 2000)]
)
def test_killed_anywhere(tmp_path: Path, former: str | None, shard_bytes: int | None) -> None:
    import shutil

    def old(out: Path) -> None:
        checkpoint = MemoryCheckpoint(tensors(1), config={"a": "old"})
        files = {"old.txt": "old"}
        save(checkpoint, out, origin=ORIGIN_B, shard_bytes=1500 if former == "shards" else None, extra_files=files)

    def new(out: Path) -> Saved:
        return save(
            Counting(tensors()), out, origin=ORIGIN_A, overwrite=former is not None, shard_bytes=shard_bytes, block=40
        )

    new(tmp_path / "new")
    expected = files(tmp_path / "new")
    before = {}
    if former is not None:
        old(tmp_path / "old")
        before = files(tmp_path / "old")
    number = 0
    while True:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        if former is not None:
            shutil.copytree(tmp_path / "old", out)
        died = killed_at(number, partial(new, out))
        assert not is_model_folder(out / PARTIAL)
        there = files(out) if out.exists() else {}
        if is_model_folder(out):
            assert there in (before, expected)
        elif former is None:
            assert not any(name.startswith("model") for name in there) or shard_bytes
        killed_at(number // 2, partial(new, out))  # what continues it may be killed, too
        new(out)
        assert files(out) == expected
        assert not (out / PARTIAL).exists()
        if not died:
            break
        number += 1
    assert number > 25
