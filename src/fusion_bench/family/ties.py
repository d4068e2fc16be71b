"""Which tensor names an architecture shares, told by its config alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Ties:
    """Names that share one tensor, each mapped to the name it shares with.

    `always`: shared in every model of the kind, so a file that stores both names stores one tensor twice.
    `when_absent`: shared only where the file does not store the name. The file decides: an output layer that is
    stored beside the embedding is a tensor of its own, whatever the config says, since transformers 5 writes
    ``tie_word_embeddings: true`` for untied models, too.
    """

    always: Mapping[str, str] = field(default_factory=dict)
    when_absent: Mapping[str, str] = field(default_factory=dict)

    def resolve(self, stored: Collection[str]) -> dict[str, str]:
        """alias -> stored name, for a file that holds the names `stored`.

        An alias that is itself in `stored` is a copy that may be dropped; which names are missing from the file
        (a pickle may keep any one of a tied group) makes no difference.
        """
        found: dict[str, str] = {}
        for target in dict.fromkeys([*self.always.values(), *self.when_absent.values()]):
            fixed = [target, *(alias for alias, shared in self.always.items() if shared == target)]
            loose = [alias for alias, shared in self.when_absent.items() if shared == target]
            kept = next((name for name in [*fixed, *loose] if name in stored), None)
            if kept is not None:
                found.update((name, kept) for name in fixed if name != kept)
                found.update((name, kept) for name in loose if name != kept and name not in stored)
        return found


NONE = Ties()


def shared_embedding(config: Mapping[str, Any], prefix: str, head: str | None = None, fixed: bool = True) -> Ties:
    """Encoder, decoder and output layer around the embedding ``{prefix}shared``.

    `fixed`: encoder and decoder share it whatever the config says, as in T5.
    """
    shared = f"{prefix}shared.weight"
    inputs = {f"{prefix}{side}.embed_tokens.weight": shared for side in ("encoder", "decoder")}
    output = {head: shared} if head else {}
    if fixed or config.get("tie_word_embeddings") is not False:
        return Ties(inputs, output)
    return Ties({}, {**inputs, **output})


def tied_head(config: Mapping[str, Any], embedding: str, head: str = "lm_head.weight") -> Ties:
    """An output layer that shares the embedding unless the config denies it."""
    return NONE if config.get("tie_word_embeddings") is False else Ties({}, {head: embedding})
