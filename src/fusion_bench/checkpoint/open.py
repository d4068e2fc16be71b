"""Opening whatever kind of checkpoint lies at a local path."""

from __future__ import annotations

from pathlib import Path

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.folder import (
    ADAPTER_CONFIG,
    CONFIG,
    PICKLE,
    PICKLE_INDEX,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    listed,
)
from fusion_bench.errors import CheckpointError

# In order of preference: safetensors before pickles, a whole file before shards.
WEIGHT_FILES = (SAFETENSORS, SAFETENSORS_INDEX, PICKLE, PICKLE_INDEX)
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def weights_in(folder: Path) -> Path | None:
    """The file (or index) that the model in `folder` is read from; None when there is none."""
    usual = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if usual is not None or is_adapter_folder(folder):
        return usual
    # One oddly named safetensors file is unambiguous (as Hub repositories of single files have it).
    single = [path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_")]
    return single[0] if len(single) == 1 else None


def is_adapter_folder(path: Path) -> bool:
    """Whether `path` is a folder that holds a PEFT adapter."""
    return (path / ADAPTER_CONFIG).is_file()


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a folder that holds a full model: config.json and weights."""
    return (path / CONFIG).is_file() and weights_in(path) is not None


def open_checkpoint(path: str | Path, *, base: Checkpoint | None = None, commit: str | None = None) -> Checkpoint:
    """The checkpoint in a local folder or file. Adapter folders need the `base` they were trained on.

    A folder that holds both full weights and an adapter is the full model. `commit`: the Hub commit, for `identity`.
    Raises CheckpointError that says what was looked for and what is there.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _open_folder(path, base, commit)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder.")
    if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
        from fusion_bench.checkpoint.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path, commit=commit)
    if path.suffix in _PICKLE_SUFFIXES or path.name.endswith(".bin.index.json"):
        from fusion_bench.checkpoint.pickle import PickleCheckpoint

        return PickleCheckpoint(path, commit=commit)
    accepted = ", ".join((".safetensors", *_PICKLE_SUFFIXES, ".safetensors.index.json", ".bin.index.json"))
    raise CheckpointError(f"{path}: not a kind of file that is read. Accepted: a model folder, or {accepted}.")


def _open_folder(folder: Path, base: Checkpoint | None, commit: str | None) -> Checkpoint:
    weights = weights_in(folder)
    if weights is not None:
        return open_checkpoint(weights, commit=commit)
    if is_adapter_folder(folder):
        if base is None:
            raise CheckpointError(
                f"{folder}: is an adapter, read on top of the model it was trained on. Give that model as base."
            )
        from fusion_bench.checkpoint.adapter import AdapterCheckpoint

        return AdapterCheckpoint(base, folder, commit=commit)
    wanted = f"{', '.join(WEIGHT_FILES)} or {ADAPTER_CONFIG}"
    raise CheckpointError(f"{folder}: holds no model. Looked for {wanted}; there is {_contents(folder)}.")


def _contents(folder: Path) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    return listed(names, 12) if names else "nothing"
