"""One generator for each task; every one offers ``draft(rng) -> Draft``."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from . import cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb
from .draft import Draft

GENERATORS: Final[dict[str, Callable[[Random], Draft]]] = {
    "cola": cola.draft,
    "mnli": mnli.draft,
    "mrpc": mrpc.draft,
    "qnli": qnli.draft,
    "qqp": qqp.draft,
    "rte": rte.draft,
    "sst2": sst2.draft,
    "stsb": stsb.draft,
}

__all__ = ["GENERATORS", "Draft"]
