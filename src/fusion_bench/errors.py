"""The errors a user sees, each one sentence per fault with the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FusionError(Exception):
    """A failure with a message fit to be printed alone. `exit_status` is what the command returns."""

    exit_status = 1


class UserError(FusionError):
    """Something the user wrote cannot be right: a name, a value, a path."""

    exit_status = 2


class ConfigError(UserError):
    """An unknown key or choice, a wrong type, a value out of range."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of a kind that is not read."""


class MissingModelError(CheckpointError):
    """A model that is neither a local path nor in the cache, where nothing can be fetched."""

    def __init__(self, names: Sequence[str], where: str, commands: Sequence[str]) -> None:
        self.names, self.where, self.commands = tuple(names), where, tuple(commands)
        one = len(self.names) == 1
        run = f" {self.commands[0]} " if one else "\n  " + "\n  ".join(self.commands) + "\n"
        super().__init__(
            f"{', '.join(self.names)}: {self.where}. Where there is a network, run:{run}or point HF_HOME at a cache "
            f"that has {'it' if one else 'them'}."
        )


class AlignmentError(UserError):
    """Checkpoints that cannot be fused with one another; the message lists every misfit."""


class OutputError(UserError):
    """A place that cannot be written to."""


class DataError(UserError):
    """Evaluation data that is missing or malformed."""


class NonFiniteError(FusionError):
    """NaN or infinity in an input tensor."""


def nearest(given: str, accepted: Iterable[str], limit: int = 3) -> list[str]:
    """The accepted words most like `given`, best first; empty when none is near."""
    words = sorted(set(accepted))
    by_folded: dict[str, str] = {}
    for word in words:
        by_folded.setdefault(_folded(word), word)
    start = _folded(given)
    # A word cut short is meant more often than one that is spelled like it.
    begun = [word for folded, word in by_folded.items() if len(start) > 2 and folded.startswith(start)]
    close = [by_folded[word] for word in difflib.get_close_matches(start, by_folded, n=limit, cutoff=0.5)]
    found = list(dict.fromkeys([*begun, *close]))[:limit]
    if _folded(given):
        contained = [w for w in words if _folded(given) in _folded(w) and w not in found]
        found += contained[: limit - len(found)]
    return found


def _folded(word: str) -> str:
    return "".join(c for c in word.lower() if c.isalnum())


def unknown(what: str, given: str, accepted: Iterable[str], where: str = "") -> str:
    """The message for a word that is not among the accepted ones: the nearest right one comes first."""
    words = sorted(set(accepted))
    close = nearest(given, words)
    prefix = f"{where}: " if where else ""
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(words) if words else "none"
    return f"{prefix}unknown {what} {given!r}.{hint} Accepted: {listed}."
