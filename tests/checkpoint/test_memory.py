"""State dicts, modules and torch files as checkpoints."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.errors import CheckpointError


def test_shared_memory_is_an_alias() -> None:
    shared = torch.randn(4, 4)
    tensors = {"z": shared, "a": shared, "view": shared[:2], "turned": shared.t(), "equal": shared.clone()}
    checkpoint = MemoryCheckpoint(tensors)
    assert checkpoint.aliases == {"a": "z"}
    assert list(checkpoint) == ["equal", "turned", "view", "z"]
    assert torch.equal(checkpoint["a"], shared)


def test_empty_tensors_are_never_aliases() -> None:
    checkpoint = MemoryCheckpoint({"a": torch.empty(0), "b": torch.empty(0)})
    assert list(checkpoint) == ["a", "b"]


def test_reads_are_copies() -> None:
    tensors = {"x": torch.ones(3)}
    checkpoint = MemoryCheckpoint(tensors)
    checkpoint.read("x").zero_()
    checkpoint["x"].zero_()
    assert torch.equal(tensors["x"], torch.ones(3))


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(5, 6, 4).permute(2, 0, 1), torch.randn(20, 7)[::2], torch.randn(6, 6).t(), torch.tensor(3.0)],
    ids=["permuted", "strided", "transposed", "scalar"],
)
def test_slices_of_any_layout(tensor: torch.Tensor) -> None:
    checkpoint, flat = MemoryCheckpoint({"x": tensor}), tensor.reshape(-1)
    for start in range(flat.numel()):
        for stop in (start, start + 1, (start + flat.numel() + 1) // 2, flat.numel()):
            assert torch.equal(checkpoint.read("x", start, stop), flat[start:stop])


def test_module_with_its_config(architectures: Any) -> None:
    model = architectures["gpt2"]()
    checkpoint = MemoryCheckpoint.of_module(model)
    assert checkpoint.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert checkpoint.config["model_type"] == "gpt2"
    assert not checkpoint["transformer.wte.weight"].requires_grad


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": 3}, "'x' is a int"),
        ({"x": torch.empty(3, device="meta")}, "no dense values"),
        ({"x": torch.zeros(3, dtype=torch.complex128)}, "dtype complex128 is not read"),
    ],
)
def test_what_is_no_state_dict(tensors: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        MemoryCheckpoint(tensors)


# torch files


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    shared = torch.randn(4, 5)
    return {"shared": shared, "head": shared, "norm": torch.randn(5).bfloat16(), "steps": torch.tensor(7)}


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("archive", [False, True])
def test_torch_files(tmp_path: Path, tensors: dict[str, torch.Tensor], name: str, nested: bool, archive: bool) -> None:
    content = {"state_dict": tensors, "epoch": 3} if nested else tensors
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=archive)
    checkpoint = open_checkpoint(tmp_path / name)
    assert checkpoint.aliases == {"head": "shared"}
    for key, tensor in tensors.items():
        assert torch.equal(checkpoint[key], tensor)
    assert torch.equal(checkpoint.read("head", 3, 9), tensors["head"].reshape(-1)[3:9])
    assert checkpoint.identity["files"][0]["size"] > 0


def test_sharded_torch_files(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    weight_map = {"shared": "a.bin", "norm": "b.bin", "steps": "b.bin"}
    torch.save({"shared": tensors["shared"]}, tmp_path / "a.bin")
    torch.save({"norm": tensors["norm"], "steps": tensors["steps"]}, tmp_path / "b.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint) == ["norm", "shared", "steps"]
    assert torch.equal(checkpoint["norm"], tensors["norm"])
    torch.save({"norm": tensors["norm"]}, tmp_path / "b.bin")
    with pytest.raises(CheckpointError, match=r"1 tensors are not in the shard.*steps \(b\.bin\)"):
        open_checkpoint(tmp_path).infos  # noqa: B018  pickles are opened when they are first asked


class Trap:
    """Writes a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_nothing_is_executed(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    torch.save({"x": torch.ones(2), "y": Trap(str(trap))}, tmp_path / "model.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(str(trap))))
    for name in ("model.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=f"{name}: cannot be read as plain weights"):
            open_checkpoint(tmp_path / name).infos  # noqa: B018
    assert not trap.exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="safetensors"):
        open_checkpoint(tmp_path / "model.pt").infos  # noqa: B018


@pytest.mark.parametrize("content", [[torch.ones(2)], {"x": 3}, 5])
def test_other_contents_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="state dict"):
        open_checkpoint(tmp_path / "model.pt").infos  # noqa: B018
