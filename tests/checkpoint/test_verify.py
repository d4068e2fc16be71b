"""Reading an output back: every damage is found and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fusion_bench.checkpoint.contents import PARTIAL
from fusion_bench.checkpoint.digests import METHOD, combined, cut, digest
from fusion_bench.checkpoint.manifest import MANIFEST, read_manifest
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.output import check_writable
from fusion_bench.checkpoint.parts import part_origin, write_parts_manifest
from fusion_bench.checkpoint.verify import outputs_in, verify
from fusion_bench.checkpoint.writer import save
from fusion_bench.errors import OutputError

SETTINGS = {"method": {"name": "alpha"}, "seed": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "out"
    tensors = {f"t{i}": torch.full((30,), float(i)) for i in range(6)} | {"empty": torch.ones(0, 3)}
    save(
        MemoryCheckpoint(tensors, config={"a": 1}), out, shard_bytes=300, extra_files={"note.txt": "x"}, origin=SETTINGS
    )
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def test_whole(out: Path) -> None:
    verdict = verify(out, threads=2)
    assert verdict.whole
    assert (verdict.tensors, verdict.nbytes) == (7, 6 * 120)


def test_digests_are_what_the_manifest_says(tmp_path: Path) -> None:
    """The digest, told once more: of the bytes that others read out of the file."""
    big = torch.randn(2**20 + 5).bfloat16()
    save(MemoryCheckpoint({"big": big, "small": torch.arange(3)}), tmp_path, threads=2)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["digest"] == METHOD == "xxh3-128 of the xxh3-128 digests of pieces of 1048576 entries"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            raw = file.get_tensor(name).view(torch.uint8).numpy().tobytes()
            width = 2 if name == "big" else 8
            pieces = [raw[at : at + 2**20 * width] for at in range(0, len(raw), 2**20 * width)]
            expected = xxhash.xxh3_128_hexdigest(b"".join(xxhash.xxh3_128_digest(piece) for piece in pieces))
            assert manifest["tensors"][name]["digest"] == expected
    assert manifest["files"]["model.safetensors"]["size"] == (tmp_path / "model.safetensors").stat().st_size


def test_digests_depend_on_neither_threads_nor_shards(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(40_000 * i) for i in range(4)}
    for at, (threads, shard_bytes) in enumerate([(1, None), (3, 200_000), (2, 10**6)]):
        save(MemoryCheckpoint(tensors), tmp_path / str(at), threads=threads, shard_bytes=shard_bytes)
    first, *others = (read_manifest(tmp_path / str(at) / MANIFEST).tensors for at in range(3))
    for other in others:
        assert {n: e.digest for n, e in other.items()} == {n: e.digest for n, e in first.items()}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_found(made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    out = tmp_path_factory.mktemp("flip") / "out"
    shutil.copytree(made, out)
    name = data.draw(st.sampled_from(sorted(entry.name for entry in out.iterdir())))
    content = bytearray((out / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    (out / name).write_bytes(content)
    verdict = verify(out)
    faults = "\n".join(verdict.faults)
    if name == MANIFEST and _parsed(bytes(content)) == _parsed((made / name).read_bytes()):
        return  # blanks between the words of a manifest say nothing
    assert not verdict.whole
    assert name in faults
    shutil.rmtree(out)


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_damaged_tensors_are_named(out: Path) -> None:
    shard = out / "model-00002-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (out / "note.txt").write_text("yy")
    (out / "config.json").write_text("1" * (out / "config.json").stat().st_size)
    assert set(verify(out).faults) == {
        "tensor 't3': wrong digest in model-00002-of-00003.safetensors",
        "note.txt: 2 bytes, not 1",
        "config.json: wrong digest",
    }


def test_cut_and_missing_files(out: Path) -> None:
    shard = out / "model-00001-of-00003.safetensors"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    (out / "model-00003-of-00003.safetensors").unlink()
    assert set(verify(out).faults) == {
        f"model-00001-of-00003.safetensors: {size - 1} bytes, not {size}",
        "tensor 't1': cannot be read from model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors: missing",
        "tensor 't4': missing with model-00003-of-00003.safetensors",
        "tensor 't5': missing with model-00003-of-00003.safetensors",
    }


def test_what_is_no_output(tmp_path: Path, out: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(OutputError, match=r"no such folder|not an output of fusion_bench"):
            verify(folder)
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / "thesis.tex").touch()
    with pytest.raises(OutputError, match="not an output of fusion_bench"):
        verify(tmp_path)
    (out / MANIFEST).write_text("{}")
    assert verify(out).faults == (f"{MANIFEST}: damaged",)


def test_a_manifest_reaches_into_its_own_folder_alone(out: Path, tmp_path: Path) -> None:
    from fusion_bench.checkpoint.sealed import sealed

    (tmp_path / "precious").write_text("x")
    entry = {"size": 1, "digest": ""}
    forged = {"format": 2, "origin": None, "files": {"../precious": entry}, "tensors": {}}
    (out / MANIFEST).write_bytes(sealed(forged))
    assert not verify(out).whole
    save(MemoryCheckpoint({"x": torch.ones(2)}), out, overwrite=True)
    assert (tmp_path / "precious").exists()


def test_cuts_cover_everything_once() -> None:
    assert list(cut("x", 0, 0)) == []
    assert list(cut("x", 4, 11, 3)) == [("x", 4, 7), ("x", 7, 10), ("x", 10, 11)]
    assert combined([digest(b"a")]) == xxhash.xxh3_128_hexdigest(xxhash.xxh3_128_digest(b"a"))


def test_torch_is_not_needed(out: Path) -> None:
    code = (
        "import sys; from fusion_bench.checkpoint.verify import verify; "
        f"assert verify({str(out)!r}).whole; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Models that one command makes together


def save_part(out: Path, part: str, value: float) -> str:
    return save(MemoryCheckpoint({"x": torch.full((3,), value)}), out / part, origin=part_origin(SETTINGS, part)).how


def test_parts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert check_writable(out, origin=SETTINGS) == "nothing"
    assert save_part(out, "a", 1) == "written"
    # Cut short here: the same command knows its parts, another one does not.
    assert verify(out).unfinished
    assert check_writable(out, origin=SETTINGS) == "nothing"
    with pytest.raises(OutputError, match=r"holds other files \(a\)"):
        check_writable(out, origin={**SETTINGS, "seed": 2})
    assert [save_part(out, part, 1) for part in "ab"] == ["complete", "written"]
    write_parts_manifest(out, ["a", "b"], SETTINGS)
    assert outputs_in(out) == [out / "a", out / "b"]
    assert all(verify(each).whole for each in outputs_in(out))
    assert check_writable(out, origin=SETTINGS) == "complete"
    with pytest.raises(OutputError, match="output of another command"):
        check_writable(out, origin={**SETTINGS, "seed": 2})
    (out / "a" / "model.safetensors").unlink()
    with pytest.raises(OutputError, match=r"damaged: a/model.safetensors is missing"):
        check_writable(out, origin=SETTINGS)


def test_parts_are_replaced_by_a_model_and_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = MemoryCheckpoint({"x": torch.ones(2)}, config={"a": 1})
    for part in "ab":
        save_part(out, part, 1)
    write_parts_manifest(out, ["a", "b"], SETTINGS)
    (out / "b" / "mine.txt").touch()
    save(model, out, origin={"seed": 3}, overwrite=True)
    assert sorted(entry.name for entry in out.iterdir()) == ["b", "config.json", MANIFEST, "model.safetensors"]
    assert [entry.name for entry in (out / "b").iterdir()] == ["mine.txt"]
    save_part(out, "c", 1)
    write_parts_manifest(out, ["c"], SETTINGS)
    assert sorted(entry.name for entry in out.iterdir()) == ["b", "c", MANIFEST]
