"""From the name or path of a model to a local folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fusion_bench.checkpoint.open import WEIGHT_FILES, is_adapter_folder, weights_in
from fusion_bench.errors import CheckpointError, MissingModelError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Everything small that a model needs: config, tokenizer, chat template, generation settings, adapter settings.
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.vocab", "*.bpe"]
_SAFETENSORS = ["*.safetensors"]
_PICKLES = ["pytorch_model*.bin", "adapter_model.bin"]
# Sub-folders hold other formats of the same weights (onnx/, original/, checkpoint-500/).
_IGNORED = ["*/*", "training_args*", "optimizer*", "*trainer_state*"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A local folder (or file), and the Hub commit it holds where that is known."""

    folder: Path
    commit: str | None = None


def resolve(name_or_path: str | Path, revision: str | None = None) -> Resolved:
    """The local folder of a model: an existing path wins, else the Hub's cache, else a download.

    ``name@revision`` pins a branch, tag or commit, as `revision` does. Only config, tokenizer and one form of the
    weights are fetched, safetensors where there are any. Honours HF_HUB_OFFLINE, HF_HOME and HF_TOKEN.
    Raises CheckpointError that names the model and says how to get it.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return Resolved(path, _commit_of(path))
    name, _, pinned = str(name_or_path).partition("@")
    revision = revision or pinned or None
    if not looks_like_hub_name(name):
        raise CheckpointError(f"{name_or_path}: no such file or folder, and not the name of a model on the Hub.")
    folder = _fetch(name, revision)
    if weights_in(folder) is None and not _adapter_weights(folder):
        raise CheckpointError(
            f"{name}: the copy in {folder} is incomplete: it has none of {', '.join(WEIGHT_FILES)}, and no adapter "
            f"weights. Complete it with: {_command(name, revision)}"
        )
    return Resolved(folder, _commit_of(folder))


def looks_like_hub_name(name: str) -> bool:
    """Whether `name` has the form ``model`` or ``organisation/model``."""
    return bool(_HUB_NAME.fullmatch(name)) and ".." not in name


def _adapter_weights(folder: Path) -> bool:
    return is_adapter_folder(folder) and any(
        (folder / file).is_file() for file in ("adapter_model.safetensors", "adapter_model.bin")
    )


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, is_offline_mode, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def snapshot(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=[*_SMALL, *patterns], ignore_patterns=_IGNORED)
        )

    cache = constants.HF_HUB_CACHE
    try:
        folder = snapshot(_SAFETENSORS)
        if not any(folder.glob("*.safetensors")) and not is_offline_mode():
            folder = snapshot(_PICKLES)
        return folder
    except GatedRepoError:
        fault = "access is restricted. Ask for it on the model's page, then log in: hf auth login"
    except RevisionNotFoundError:
        fault = f"has no revision {revision!r}. See its history on the Hub."
    except RepositoryNotFoundError:
        fault = "neither a local path nor a model on the Hub that you can see (private ones need: hf auth login)."
    except LocalEntryNotFoundError:
        offline = "HF_HUB_OFFLINE is set" if is_offline_mode() else "the Hub cannot be reached"
        where = f"not a local path, not in the cache ({cache}), and {offline}"
        asked = f"{name}@{revision}" if revision else name
        raise MissingModelError([asked], where, [_command(name, revision)]) from None
    except HFValidationError as error:
        fault = f"not a local path, and not a valid name on the Hub ({error})."
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        fault = f"could not be fetched ({type(error).__name__}: {first}). Try again, or run: {_command(name, revision)}"
    asked = f"{name}@{revision}" if revision else name
    raise CheckpointError(f"{asked}: {fault}")


def _command(name: str, revision: str | None) -> str:
    return f"hf download {name}" + (f" --revision {revision}" if revision else "")


def _commit_of(path: Path) -> str | None:
    """Folders in the Hub's cache are called by their commit."""
    folder = Path(os.path.abspath(path))
    folder = folder.parent if folder.is_file() else folder
    return folder.name if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name) else None
