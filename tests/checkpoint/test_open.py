"""Opening folders and files, and finding models by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fusion_bench
from fusion_bench.checkpoint.hub import looks_like_hub_name, resolve
from fusion_bench.checkpoint.open import is_adapter_folder, is_model_folder, open_checkpoint
from fusion_bench.errors import CheckpointError

SHA = "0123456789abcdef0123456789abcdef01234567"


def model(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.full((2,), value)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "t5"}')
    return folder


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    model(tmp_path)
    torch.save({"x": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert torch.equal(open_checkpoint(tmp_path)["x"], torch.ones(2))
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(open_checkpoint(tmp_path)["x"], torch.zeros(2))


def test_config_and_folder(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(model(tmp_path)))
    assert checkpoint.config == {"model_type": "t5"}
    assert checkpoint.folder == tmp_path
    assert open_checkpoint(tmp_path / "model.safetensors").config == {"model_type": "t5"}


def test_one_oddly_named_file(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert list(open_checkpoint(tmp_path)) == ["x"]
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no model"):
        open_checkpoint(tmp_path)


def test_weights_of_an_adapter_alone_are_no_model(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json; there is adapter_model\.safetensors"):
        open_checkpoint(tmp_path)


def test_errors_say_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "sub").mkdir()
    with pytest.raises(
        CheckpointError, match=r"Looked for model\.safetensors.*adapter_config\.json; there is notes\.txt, sub/"
    ):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is nothing"):
        open_checkpoint(tmp_path / "sub")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="not a kind of file"):
        open_checkpoint(tmp_path / "notes.txt")


def test_adapter_without_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="Give that model as base"):
        open_checkpoint(tmp_path)


def test_kinds_of_folders(tmp_path: Path) -> None:
    full, adapter, empty = model(tmp_path / "full"), tmp_path / "adapter", tmp_path / "empty"
    adapter.mkdir()
    empty.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert [is_model_folder(folder) for folder in (full, adapter, empty)] == [True, False, False]
    assert [is_adapter_folder(folder) for folder in (full, adapter, empty)] == [False, True, False]
    (full / "config.json").unlink()
    assert not is_model_folder(full)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_config(tmp_path: Path, text: str) -> None:
    (model(tmp_path) / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path).config  # noqa: B018


# Names on the Hub


def test_existing_paths_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name").folder == Path("org/name")
    assert resolve("org/name").commit is None
    snapshot = model(tmp_path / "models--a--b" / "snapshots" / SHA)
    assert resolve(snapshot).commit == SHA
    assert resolve(snapshot / "model.safetensors").commit == SHA


@pytest.mark.parametrize(
    "name", ["./missing", "/no/such", "a/b/c", "~/missing-model", "with space", "", "..", "a/../b"]
)
def test_what_is_no_name(name: str) -> None:
    assert not looks_like_hub_name(name)
    if name not in ("", ".."):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            resolve(name)


@pytest.mark.parametrize("name", ["gpt2", "google/flan-t5-base", "tanganke/flan-t5-base_glue-cola"])
def test_what_is_a_name(name: str) -> None:
    assert looks_like_hub_name(name)


def cached(home: Path, name: str, files: dict[str, bytes], sha: str = SHA, ref: str = "main") -> Path:
    """A model in the Hub's cache, laid out by hand."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / sha
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / ref).write_text(sha)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)
    return snapshot


def resolved_offline(home: Path, *names: str) -> list[str]:
    """What a process with that cache resolves each name to; huggingface_hub reads the environment on import."""
    code = """
import sys
from fusion_bench.checkpoint.hub import resolve
from fusion_bench.errors import CheckpointError
for name in sys.argv[1:]:
    try:
        found = resolve(name)
        print(f"{found.folder}|{found.commit}")
    except CheckpointError as error:
        print(error)
assert "torch" not in sys.modules
"""
    source = str(Path(fusion_bench.__file__).parents[1])
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": source}
    environment.pop("HF_HUB_CACHE", None)
    run = subprocess.run(
        [sys.executable, "-c", code, *names], env=environment, check=True, capture_output=True, text=True
    )
    return run.stdout.strip().split("\n")


def test_offline_cache(tmp_path: Path) -> None:
    weights = model(tmp_path / "source")
    content = {name: (weights / name).read_bytes() for name in ("config.json", "model.safetensors")}
    adapter = {"adapter_config.json": b"{}", "adapter_model.bin": b""}
    other = "f" * 40
    cached(tmp_path, "org/full", content)
    cached(tmp_path, "org/full", content, sha=other, ref="v2")
    cached(tmp_path, "org/config-only", {"config.json": b"{}"})
    cached(tmp_path, "org/adapter", adapter)
    cached(tmp_path, "org/half-adapter", {"adapter_config.json": b"{}"})
    names = ["org/full", "org/full@v2", f"org/full@{other}", "org/adapter"]
    full, tagged, pinned, lora = resolved_offline(tmp_path, *names)
    snapshots = tmp_path / "hub" / "models--org--full" / "snapshots"
    assert full == f"{snapshots / SHA}|{SHA}"
    assert tagged == pinned == f"{snapshots / other}|{other}"
    assert lora.endswith(f"models--org--adapter/snapshots/{SHA}|{SHA}")

    names = ["org/config-only", "org/half-adapter", "org/absent", "org/full@v3", "bad--name/x--"]
    incomplete, half, absent, revision, invalid = resolved_offline(tmp_path, *names)
    assert incomplete.startswith("org/config-only: the copy in")
    assert "incomplete" in incomplete
    assert "hf download org/config-only" in incomplete
    assert "incomplete" in half
    for words in ("org/absent", "HF_HUB_OFFLINE is set", str(tmp_path / "hub"), "hf download org/absent", "HF_HOME"):
        assert words in absent
    assert "hf download org/full --revision v3" in revision
    assert invalid.startswith("bad--name/x--")


def test_only_one_form_of_the_weights_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def fetch(files: list[str]) -> None:
        def snapshot_download(name: str, revision: str | None, allow_patterns: list[str], **_: object) -> str:
            asked.append(allow_patterns)
            for file in files:
                if any(Path(file).match(pattern) for pattern in allow_patterns):
                    (tmp_path / file).touch()
            return str(tmp_path)

        asked.clear()
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)

    fetch(["config.json", "pytorch_model.bin"])
    assert resolve("org/old").folder == tmp_path
    assert len(asked) == 2
    fetch(["config.json", "model.safetensors", "pytorch_model.bin"])
    resolve("org/new")
    assert len(asked) == 1
    assert not any(".bin" in pattern for pattern in asked[0])
