"""The examples of the suite: eight generated tasks with the columns and labels of GLUE.

A draft belongs to the split which a digest of its text names, so the splits of a task are
disjoint by input text without knowing one another, and any of them is made alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from random import Random
from typing import Any, Final

from .generators import GENERATORS, Draft

VERSION: Final = "1"
SEED: Final = 20231
TASKS: Final[tuple[str, ...]] = tuple(GENERATORS)
SIZES: Final[dict[str, int]] = {"train": 6000, "validation": 640, "test": 640}
# Quarters of the digest's range; the base model's corpus is drawn from the share of train, too.
_SHARES: Final[dict[str, tuple[int, ...]]] = {"train": (0, 1), "validation": (2,), "test": (3,)}
# The reported examples were drawn anew when the design was frozen: no fused model had been scored on them before.
_STREAMS: Final[dict[str, str]] = {"test": "reported"}


def load(task: str, split: str, seed: int = SEED) -> list[dict[str, Any]]:
    """The examples of one split, each with the columns of GLUE and ``idx``.

    Raises ValueError for an unknown task or split.
    """
    size = SIZES[_known(split, SIZES, "split")]
    stream = drafts(task, split, Random(f"{VERSION}/{task}/{_STREAMS.get(split, split)}/{seed}"))
    seen: set[tuple[str, ...]] = set()
    rows: list[dict[str, Any]] = []
    while len(rows) < size:
        draft = next(stream)
        if (key := _key(draft)) not in seen:
            seen.add(key)
            rows.append({**draft.columns, "label": draft.label, "idx": len(rows)})
    return rows


def drafts(task: str, split: str, rng: Random) -> Iterator[Draft]:
    """An endless stream of drafts whose texts belong to ``split``; texts may come again."""
    generate = GENERATORS[_known(task, GENERATORS, "task")]
    share = _SHARES[_known(split, _SHARES, "split")]
    while True:
        draft = generate(rng)
        digest = hashlib.blake2b("\t".join((task, *_key(draft))).encode(), digest_size=1).digest()
        if digest[0] % 4 in share:
            yield draft


def _key(draft: Draft) -> tuple[str, ...]:
    # Sorted: a pair and its mirror image count as one text.
    return tuple(sorted(draft.columns.values()))


def _known(name: str, accepted: dict[str, Any], what: str) -> str:
    if name not in accepted:
        raise ValueError(f"unknown {what} {name!r}; accepted: {', '.join(accepted)}")
    return name
