"""The closed vocabulary from which every sentence of the suite is built.

A *meaning* is a tuple of interchangeable words; two words of one meaning are synonyms.
"""

from __future__ import annotations

from typing import Final

Meaning = tuple[str, ...]

PEOPLE: Final[tuple[str, ...]] = (
    "baker", "doctor", "farmer", "teacher", "pilot", "artist",
    "lawyer", "nurse", "student", "singer", "driver", "clerk",
)  # fmt: skip
TRAITS: Final[tuple[str, ...]] = ("young", "old", "tall", "quiet", "rich", "brave")
PLACES: Final[tuple[str, ...]] = (
    "garden", "market", "kitchen", "park", "school",
    "station", "harbor", "library", "forest", "office",
)  # fmt: skip
TIMES: Final[tuple[str, ...]] = ("noon", "night", "dawn", "dusk", "midnight", "breakfast", "lunch", "sunset")
COLOURS: Final[tuple[str, ...]] = ("red", "blue", "green", "black", "white", "yellow")

OBJECTS: Final[tuple[Meaning, ...]] = (
    ("car", "automobile"), ("couch", "sofa"), ("gift", "present"), ("picture", "photo"),
    ("rug", "carpet"), ("bag", "sack"), ("boat", "ship"), ("stone", "rock"),
    ("lamp",), ("clock",), ("chair",), ("book",), ("cup",), ("door",), ("coat",), ("drum",),
)  # fmt: skip

# Neighbours (0, 1), (2, 3), ... are opposites of each other.
VERBS: Final[tuple[Meaning, ...]] = (
    ("bought", "purchased"), ("sold", "traded"),
    ("found", "discovered"), ("lost", "misplaced"),
    ("fixed", "repaired"), ("damaged", "ruined"),
    ("opened", "unlocked"), ("closed", "locked"),
    ("cleaned", "washed"), ("stained", "dirtied"),
    ("praised", "admired"), ("blamed", "mocked"),
)  # fmt: skip

ADVICE_VERBS: Final[tuple[Meaning, ...]] = (
    ("buy", "purchase"), ("sell", "trade"), ("fix", "repair"),
    ("clean", "wash"), ("find",), ("paint",), ("move",), ("hide",),
)  # fmt: skip

REVIEWED: Final[tuple[str, ...]] = ("film", "story", "acting", "music", "ending", "plot", "cast", "script")
POSITIVE: Final[tuple[str, ...]] = (
    "wonderful", "great", "charming", "funny", "brilliant", "touching",
    "clever", "lovely", "fresh", "warm", "superb", "delightful",
)  # fmt: skip
NEGATIVE: Final[tuple[str, ...]] = (
    "awful", "dull", "boring", "terrible", "clumsy", "weak",
    "stale", "cold", "dreadful", "silly", "tedious", "bland",
)  # fmt: skip


def opposite(verb: Meaning) -> Meaning:
    """The meaning which denies ``verb``: bought and sold, found and lost."""
    return VERBS[VERBS.index(verb) ^ 1]
