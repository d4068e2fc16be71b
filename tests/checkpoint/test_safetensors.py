"""Reading safetensors files: values, slices, shards, and every kind of damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import fusion_bench
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.safetensors import SafetensorsCheckpoint
from fusion_bench.errors import CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex64,
]  # fmt: skip


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.rand(shape) > 0.5
    return (torch.rand(shape) * 100).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"matrix": some(dtype, 5, 7), "scalar": some(dtype), "empty": some(dtype, 0, 3)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint) == ["empty", "matrix", "scalar"]
    for name, tensor in tensors.items():
        assert checkpoint[name].dtype == dtype
        assert checkpoint[name].shape == tensor.shape
        assert torch.equal(bits(checkpoint[name]), bits(tensor))
        assert checkpoint.info(name).nbytes == tensor.numel() * tensor.element_size()


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
    numel=st.integers(0, 300),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_slices_are_parts_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, numel: int, ends: tuple[float, float]
) -> None:
    path = tmp_path_factory.mktemp("slices") / "model.safetensors"
    save_file({"before": some(torch.int8, 3), "x": some(dtype, numel)}, path)
    checkpoint = SafetensorsCheckpoint(path)
    start, stop = sorted(int(end * numel) for end in ends)
    whole = checkpoint.read("x")
    assert torch.equal(checkpoint.read("x", start, stop), whole[start:stop])
    out = torch.zeros(stop - start, dtype=dtype)
    checkpoint.read_into("x", start, out)
    assert torch.equal(out, whole[start:stop])


def test_reads_are_fresh_and_leave_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(4)}, path)
    before = path.read_bytes()
    checkpoint = SafetensorsCheckpoint(path)
    checkpoint.read("x").mul_(5)
    assert torch.equal(checkpoint["x"], torch.ones(4))
    assert path.read_bytes() == before


def test_wrong_ranges_names_and_buffers(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    for start, stop in ((-1, 2), (0, 5), (3, 2)):
        with pytest.raises(IndexError):
            checkpoint.read("x", start, stop)
    with pytest.raises(KeyError):
        checkpoint.read("y")
    for buffer in (torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2), torch.zeros(8)[::4]):
        with pytest.raises((ValueError, IndexError)):
            checkpoint.read_into("x", 0, buffer)


def test_threads_share_one_file(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((1000,), float(i)) for i in range(50)}
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(checkpoint.__getitem__, list(tensors) * 4))
    assert all(torch.equal(value, tensors[name]) for name, value in zip(list(tensors) * 4, found, strict=True))


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"x": torch.arange(100)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    honest = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: honest(fd, [buffers[0][:13]], at))
    assert torch.equal(checkpoint["x"], torch.arange(100))


# Damage


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


DAMAGE: dict[str, tuple[Any, bytes, int | None, str]] = {
    "header longer than the file": ({}, b"", 10**6, "claims 1000000 bytes"),
    "absurd header length": ({}, b"", 2**63, "cut off, or not safetensors"),
    "not JSON": (b"{nonsense", b"", None, "not JSON"),
    "not an object": (b"[1, 2]", b"", None, "does not begin with"),
    "not text": (b"{\xff\xfe}", b"", None, "not JSON"),
    "name twice": (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}', b"", None, "names 'a' twice"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, b"", None, "'a' lacks"),
    "negative shape": ({"a": entry(0, 4, [-1])}, b"0000", None, "not a list of lengths"),
    "true as a length": ({"a": entry(0, 4, [True])}, b"0000", None, "not a list of lengths"),
    "offsets reversed": ({"a": entry(4, 0, [1])}, b"0000", None, "needs 4 bytes"),
    "offsets not a pair": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"0000", None, "begin, end"),
    "shape and offsets disagree": ({"a": entry(0, 4, [2])}, b"0000", None, "needs 8 bytes, its offsets give 4"),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, b"0" * 12, None, "'b' overlaps 'a'"),
    "hole": ({"a": entry(0, 4), "b": entry(8, 12)}, b"0" * 12, None, "leaves 4 bytes unused after 'a'"),
    "hole at the start": ({"a": entry(4, 8)}, b"0" * 8, None, "leaves 4 bytes unused"),
    "cut data": ({"a": entry(0, 400)}, b"0" * 100, None, "cut off"),
    "more data": ({"a": entry(0, 4)}, b"0" * 100, None, "more data"),
    "unknown dtype": ({"a": entry(0, 4, [1], "F7")}, b"0000", None, "tensor 'a' has dtype 'F7'"),
    "metadata not text": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(tmp_path: Path, what: str) -> None:
    header, data, length, message = DAMAGE[what]
    path = written(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")) as caught:
        open_checkpoint(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("size", [0, 5, 8, 30, 200])
def test_truncation_anywhere_is_noticed(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(100), "y": torch.ones(3)}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(path)


def test_truncation_after_opening_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(100)}, path)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="8 bytes early"):
        checkpoint.read("x")


def test_reading_after_close(tmp_path: Path) -> None:
    save_file({"x": torch.ones(100)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.close()
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.read("x")


# Shards


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {f"layer.{i}.weight": torch.randn(3, 4) for i in range(5)}
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"model-{i % 2 + 1:05d}-of-00002.safetensors"
    for file in set(weight_map.values()):
        save_file({n: tensors[n] for n in tensors if weight_map[n] == file}, folder / file)
    index = {"metadata": {"total_size": 240}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    tensors = sharded(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint) == sorted(tensors)
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in tensors.items())
    assert len(checkpoint.identity["files"]) == 2


def test_missing_shards_are_all_listed(tmp_path: Path) -> None:
    sharded(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"2 of 2 shards are missing: .*00001-of-00002.*00002-of-00002"):
        open_checkpoint(tmp_path)


def test_tensors_missing_from_shards_are_all_listed(tmp_path: Path) -> None:
    tensors = sharded(tmp_path)
    save_file({"layer.0.weight": tensors["layer.0.weight"]}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"2 tensors are not in the shard.*layer\.2\.weight.*layer\.4\.weight"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "..", "a/b.safetensors"])
def test_index_may_not_leave_its_folder(tmp_path: Path, file: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))
    with pytest.raises(CheckpointError, match="outside its own folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_malformed_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(tmp_path)


def test_identity_tells_files_apart(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4)}, tmp_path / "a.safetensors")
    save_file({"y": torch.ones(4)}, tmp_path / "b.safetensors")
    first, second = (open_checkpoint(tmp_path / f"{name}.safetensors").identity["files"][0] for name in "ab")
    assert first["size"] == second["size"]
    assert first["header"] != second["header"]
    assert json.dumps(first)


def test_headers_need_no_torch(tmp_path: Path) -> None:
    save_file({"x": torch.ones(4), "y": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"a": 1}')
    code = f"""
import sys
from fusion_bench.checkpoint import align, companions, hub, open, output, shards, views, writer, adapter, stream, memory
from fusion_bench.checkpoint.views import Cast, Renamed, Selected, WithAliases
c = open.open_checkpoint({str(tmp_path)!r})
c = Cast(Renamed(Selected(WithAliases(c, {{"y": "z"}}), ["x", "y"]), {{"x": "w"}}), "bf16")
align.align(c, {{"a": c}})
assert c.info("w").dtype == "BF16" and c.config == {{"a": 1}} and c.identity
shards.plan_shards(c.infos)
hub.resolve({str(tmp_path)!r})
output.check_writable({str(tmp_path / "new")!r})
assert "torch" not in sys.modules, "torch was imported"
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(fusion_bench.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
