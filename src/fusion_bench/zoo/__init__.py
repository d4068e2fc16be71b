"""The embedded miniature pools with the recipes that make them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MINI_T5: Final[Path] = Path(__file__).parent / "mini_t5_glue_lora16"
MINI_CLIP: Final[Path] = Path(__file__).parent / "mini_clip_vision"

__all__ = ["MINI_CLIP", "MINI_T5"]
