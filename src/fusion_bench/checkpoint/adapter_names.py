"""What each tensor of an adapter file is, with the tensor of the base that it changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fusion_bench.checkpoint.base import Checkpoint

_PREFIX = "base_model.model."
# Ends of names inside an adapter file -> the role of the tensor.
_ROLES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".ia3_l": "ia3",
}
_FOREIGN = (".lora_", ".ia3_", ".hada_", ".lokr_", ".trainable_tokens", "token_adapter", ".vera_", ".oft_", ".boft_")


@dataclass
class Contents:
    """An adapter file sorted out.

    `modules`: module -> role -> name in the file; `tensors`: tensor saved in full -> name in the file; `foreign`:
    parameters of other techniques.
    """

    modules: dict[str, dict[str, str]] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)


def sort_out(names: Iterable[str]) -> Contents:
    """Assigns every tensor of an adapter file to the module it adapts, or to the tensor it replaces."""
    contents = Contents()
    for stored in names:
        name = stored.removeprefix(_PREFIX)
        suffix = next((suffix for suffix in _ROLES if name.endswith(suffix)), None)
        if suffix is not None:
            contents.modules.setdefault(name.removesuffix(suffix), {})[_ROLES[suffix]] = stored
        elif any(mark in f".{name}" for mark in _FOREIGN):
            contents.foreign.append(name)
        elif ".modules_to_save." in name:
            # bias="all" saves the biases of such modules a second time, under their inner name.
            contents.tensors.setdefault(name.replace(".modules_to_save.", "."), stored)
        elif ".original_module." not in name:
            contents.tensors[name.replace(".base_layer.", ".")] = stored
    return contents


class BaseNames:
    """Finds the base's name for a name in the adapter, also where one of them carries a further prefix."""

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._by_end: dict[str, str | None] | None = None

    def find(self, name: str) -> str | None:
        """The same name; else the only base name that ends in it; else the longest end of it that is a base name."""
        if name in self._base:
            return name
        longer = self._ends().get(name)
        if longer is not None:
            return longer
        parts = name.split(".")
        # At least module and parameter must remain: a bare "weight" says nothing.
        shorter = (".".join(parts[start:]) for start in range(1, len(parts) - 1))
        return next((end for end in shorter if end in self._base), None)

    def _ends(self) -> dict[str, str | None]:
        """Every end of every base name -> that name; None where several names end so."""
        if self._by_end is None:
            found: dict[str, str | None] = {}
            for name in (*self._base, *self._base.aliases):
                rest = name
                while "." in rest:
                    rest = rest.partition(".")[2]
                    found[rest] = None if rest in found else name
            self._by_end = found
        return self._by_end
