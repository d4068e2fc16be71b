"""Whether models number their tokens alike, so that rows of embeddings may be merged by position."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.hub import resolve
from fusion_bench.errors import CheckpointError, ConfigError
from fusion_bench.mergekit.document import Document, Model

_KEY = "tokenizer_source"


def tokenizer_folder(document: Document, models: Mapping[Model, Checkpoint]) -> Path | None:
    """The folder of the tokenizer that the configuration asks for; None where it asks for none.

    With the key, mergekit matches rows of embeddings by token. That is a merge by position where all models number
    their tokens alike and have no further rows; ConfigError where they do not.
    """
    if document.tokenizer is None:
        return None
    chosen = document.tokenizer
    folder = models[chosen].folder if chosen in models else Path(resolve(chosen.path, chosen.revision).folder)
    wanted = _vocabulary(folder, chosen)
    faults = []
    for model, checkpoint in models.items():
        found = wanted if model == chosen else _vocabulary(checkpoint.folder, model)
        rows = checkpoint.config.get("vocab_size")
        if found != wanted:
            differing = sum(found.get(token) != place for token, place in wanted.items())
            differing += len(found.keys() - wanted.keys())
            faults.append(f"  {model}: {differing} tokens differ")
        elif isinstance(rows, int) and rows != len(wanted):
            faults.append(f"  {model}: {rows} rows of embeddings for {len(wanted)} tokens")
    if faults:
        raise ConfigError(
            f"{_KEY}: {chosen}: rows of embeddings would have to be re-ordered or added, which is not supported:\n"
            + "\n".join(faults)
            + f"\nLeave {_KEY} out to merge rows by position, or bring the models to one tokenizer first."
        )
    return folder


def _vocabulary(folder: Path | None, model: Model) -> dict[str, int]:
    """Token -> number, as the tokenizer's file says."""
    file = None if folder is None else folder / "tokenizer.json"
    if file is None or not file.is_file():
        raise ConfigError(
            f"{_KEY}: {model} has no tokenizer.json, so it cannot be said whether its tokens are numbered alike. "
            f"Leave {_KEY} out to merge rows of embeddings by position."
        )
    try:
        held: dict[str, Any] = json.loads(file.read_bytes())
        listed = held["model"]["vocab"]
        words = listed.items() if isinstance(listed, Mapping) else ((entry[0], i) for i, entry in enumerate(listed))
        found = {str(word): int(place) for word, place in words}
        found.update({str(added["content"]): int(added["id"]) for added in held.get("added_tokens", ())})
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{file}: not a tokenizer that is understood: {type(error).__name__}: {error}") from error
    return found
