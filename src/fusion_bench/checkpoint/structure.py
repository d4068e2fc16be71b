"""What the names and shapes of a model's tensors say of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Structure:
    """The layers behind tensor names, as the model's family knows them.

    `linear`: weights of linear layers (2-D), without embeddings, output layers over a vocabulary and projections into
    a joint space; `transposed`: those of them that are stored in x out (GPT-2) instead of out x in; `blocks`: name ->
    (position in its stack of equal blocks, number of blocks in that stack); `before`: what comes before all blocks,
    such as embeddings.
    """

    linear: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    blocks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    before: frozenset[str] = frozenset()

    def depth(self, name: str) -> float:
        """Where a tensor lies between the first (0) and the last (1) block of its stack; what follows counts as 1."""
        if name in self.before:
            return 0.0
        index, count = self.blocks.get(name, (1, 2))
        return index / (count - 1) if count > 1 else 1.0
