"""Whole pickled modules: their tensors are read, their code never is."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.pickle import PickleCheckpoint
from fusion_bench.checkpoint.pickled_module import load_module_weights
from fusion_bench.errors import CheckpointError


@pytest.fixture
def foreign() -> Iterator[ModuleType]:
    """A module of code that is there while files are written; what asks for it later fails the test."""
    module = ModuleType("foreign_project")

    class Mode(Enum):
        BICUBIC = "bicubic"

    class Layers(dict):  # type: ignore[type-arg]
        """A container of the project's own."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Linear(4, 2).half())
            self.model.register_buffer("passing", torch.ones(3), persistent=False)
            self.scale = nn.Parameter(torch.tensor(2.5))
            self.shared = self.model[2]
            self.nothing = None
            self.register_parameter("bias", None)
            self.preprocess = {"mode": Mode.BICUBIC, "call": functools.partial(function, 3), "extra": Layers(a=1)}
            self.sizes = (torch.Size([1, 2]), torch.float16, {1, 2}, frozenset({3}))

    def function(value: int) -> int:
        return value

    for item in (Mode, Layers, Encoder, function):
        item.__module__, item.__qualname__ = "foreign_project", item.__name__
        setattr(module, item.__name__, item)
    sys.modules["foreign_project"] = module
    yield module
    sys.modules.pop("foreign_project", None)


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before torch 1.6"])
def test_tensors_are_those_of_the_state_dict(foreign: ModuleType, tmp_path: Path, zipped: bool) -> None:
    model = foreign.Encoder()
    torch.save(model, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    # Taken away: were the class looked up, reading would fail.
    del sys.modules["foreign_project"]
    found = load_module_weights(tmp_path / "model.pt")
    expected = model.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert "foreign_project" not in sys.modules


def test_as_a_checkpoint_only_where_it_is_allowed(foreign: ModuleType, tmp_path: Path) -> None:
    model = foreign.Encoder()
    torch.save(model, tmp_path / "model.pt")
    del sys.modules["foreign_project"]
    with pytest.raises(CheckpointError) as caught:
        _ = open_checkpoint(tmp_path / "model.pt").infos
    assert "it names foreign_project.Encoder" in str(caught.value)
    assert "modelpool.pickled_modules=true" in str(caught.value)
    checkpoint = PickleCheckpoint(tmp_path / "model.pt", pickled_modules=True)
    assert checkpoint.aliases == {"shared.bias": "model.2.bias", "shared.weight": "model.2.weight"}
    assert torch.equal(checkpoint["model.0.weight"], model.model[0].weight)
    plain = {"x": torch.ones(2)}
    torch.save(plain, tmp_path / "plain.pt")
    assert list(PickleCheckpoint(tmp_path / "plain.pt", pickled_modules=True)) == ["x"]


class Attack:
    """Calls `function` with `arguments` when it is unpickled in the ordinary way."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before torch 1.6"])
@pytest.mark.parametrize("name", ["system", "eval", "exec", "open", "import", "subprocess", "pickle"])
def test_attacks_are_refused_by_name_and_do_not_run(tmp_path: Path, name: str, zipped: bool) -> None:
    import pickle
    import subprocess

    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')"
    attack, told = {
        "system": (Attack(os.system, f"touch {mark}"), rf"names {os.system.__module__}\.system"),
        "eval": (Attack(eval, code), r"names builtins\.eval"),
        "exec": (Attack(exec, code), r"names builtins\.exec"),
        "open": (Attack(open, str(mark), "w"), r"names (builtins|io|_io)\.open"),
        "import": (Attack(__import__, "os"), r"names builtins\.__import__"),
        "subprocess": (Attack(subprocess.call, ["touch", str(mark)]), r"names subprocess\.call"),
        "pickle": (Attack(pickle.loads, pickle.dumps(Attack(os.system, f"touch {mark}"))), r"names _?pickle\.loads"),
    }[name]
    model = nn.Linear(2, 2)
    model.preprocess = attack
    torch.save(model, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=told) as caught:
        _ = PickleCheckpoint(tmp_path / "model.pt", pickled_modules=True).infos
    assert "model.pt" in str(caught.value)
    assert not mark.exists()


def test_a_call_of_foreign_code_makes_an_empty_object(foreign: ModuleType, tmp_path: Path) -> None:
    ran: list[str] = []
    foreign.record = lambda word: ran.append(word)
    foreign.record.__module__, foreign.record.__qualname__, foreign.record.__name__ = "foreign_project", *["record"] * 2
    model = nn.Linear(2, 2)
    model.preprocess = Attack(foreign.record, "called")
    torch.save(model, tmp_path / "model.pt")
    assert list(load_module_weights(tmp_path / "model.pt")) == ["weight", "bias"]
    assert ran == []


def test_what_a_file_sets_on_what_it_is_given_stays_in_the_file(tmp_path: Path) -> None:
    """A pickle may set attributes of the functions that rebuild tensors: those must not be torch's own."""
    rebuild = torch._utils._rebuild_tensor_v2
    # The function by its name; the state (None, {"__defaults__": (1,)}) set on it.
    stream = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b."
    _archive(stream, tmp_path / "model.pt")
    before = rebuild.__defaults__
    with pytest.raises(CheckpointError, match="holds a function"):
        load_module_weights(tmp_path / "model.pt")
    assert rebuild.__defaults__ == before


def _archive(stream: bytes, path: Path) -> None:
    """A torch file whose pickle is `stream`."""
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", stream)
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", sys.byteorder)


def test_programs_are_not_run(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="TorchScript archive, which is a program"):
        load_module_weights(tmp_path / "model.pt")


def test_archives_of_tar_are_not_unpacked(tmp_path: Path) -> None:
    import tarfile

    torch.save(nn.Linear(2, 2), tmp_path / "pickle")
    with tarfile.open(tmp_path / "model.pt", "w") as archive:
        archive.add(tmp_path / "pickle", "pickle")
    with pytest.raises(CheckpointError, match=r"model\.pt: is a tar archive"):
        load_module_weights(tmp_path / "model.pt")


def test_without_a_module_there_is_nothing_to_read(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_module_weights(tmp_path / "list.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a pickle at all")
    with pytest.raises(CheckpointError, match=r"noise\.pt: cannot be read"):
        load_module_weights(tmp_path / "noise.pt")
