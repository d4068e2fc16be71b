"""The folder of the pre-trained CLIP: text tower, projection, tokenizer, image processor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fusion_bench.checkpoint.hub import resolve
from fusion_bench.checkpoint.open import weights_in
from fusion_bench.errors import CheckpointError, ConfigError

PREPROCESSOR: Final = "preprocessor_config.json"
_VOCABULARIES: Final = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True, slots=True)
class ClipFolder:
    """A local folder, and the name it was asked for by."""

    asked: str
    folder: Path

    @property
    def shown(self) -> str:
        """What a report calls it: a name on the Hub, or the last part of a path."""
        cached = next((part for part in self.folder.parts if part.startswith("models--")), None)
        if cached is not None:
            return cached.removeprefix("models--").replace("--", "/")
        return self.folder.name or self.asked


def find_clip(asked: str | None, candidates: Iterable[Path | str], text: bool = True) -> ClipFolder:
    """The folder that is `asked` for, else the first of `candidates` that will do; ConfigError with what each lacks.

    `text`: whether the text tower is needed, or the image processor alone. Imports neither torch nor transformers.
    """
    places: Sequence[Path | str] = [asked] if asked is not None else list(dict.fromkeys(candidates))
    tried: list[str] = []
    for place in places:
        try:
            folder = resolve(place).folder
        except CheckpointError as fault:
            tried.append(f"  {place}: {fault}")
            continue
        lacking = lacks(folder, text)
        if not lacking:
            return ClipFolder(str(place), folder)
        tried.append(f"  {place}: {lacking}")
    looked = "Tried:\n" + "\n".join(tried) + "\n" if tried else "No model of the pool has a folder.\n"
    wanted = "a whole CLIP with text tower, tokenizer and image processor" if text else f"a {PREPROCESSOR}"
    raise ConfigError(
        f"taskpool.clip: {wanted} is needed. {looked}"
        "Set taskpool.clip to the folder or Hub name of the pre-trained model, such as openai/clip-vit-base-patch32."
    )


def lacks(folder: Path, text: bool = True) -> str:
    """What a folder lacks to serve; empty where it serves."""
    faults = [] if (folder / PREPROCESSOR).is_file() else [f"no {PREPROCESSOR}"]
    if text:
        kind = clip_config(folder).get("model_type")
        if kind != "clip":
            faults.append(f"its config.json says model_type {kind!r}, not 'clip'" if kind else "no config.json")
        elif weights_in(folder) is None:
            faults.append("no weights")
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            faults.append("no tokenizer")
    return ", ".join(faults)


def clip_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; empty where there is none that can be read."""
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
