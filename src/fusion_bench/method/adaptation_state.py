"""An adaptation under way on disk, so that one that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_INTERVAL = 20.0


@dataclass
class Diary:
    """Keeps the state of an adaptation in one file, replaced whole every `_INTERVAL` seconds and at the end.

    `content` is everything that decides the numbers: its digest names the file. A file that is not as it was written
    counts as none. A folder that cannot be written to costs the resuming, nothing else.
    """

    content: Mapping[str, Any]
    folder: Path | None
    _kept: float = field(default_factory=time.monotonic)

    @property
    def file(self) -> Path | None:
        """Where the state lies; None where nothing is kept."""
        if self.folder is None:
            return None
        text = json.dumps(self.content, sort_keys=True, default=str)
        return self.folder / "adaptations" / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.json"

    def read(self) -> dict[str, Any] | None:
        """The state that was kept; None where there is none."""
        from fusion_bench.checkpoint.sealed import unsealed

        try:
            return unsealed(self.file) if self.file else None
        except (OSError, ValueError):
            return None

    def keep(self, state: Mapping[str, Any], now: bool = False) -> None:
        """Writes the state where enough time has passed, or `now`."""
        if self.file is None or (not now and time.monotonic() - self._kept < _INTERVAL):
            return
        self._kept = time.monotonic()
        from fusion_bench.checkpoint.sealed import sealed

        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(sealed(state))
            draft.replace(self.file)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
