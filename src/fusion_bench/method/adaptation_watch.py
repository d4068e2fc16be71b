"""What is watched while a model adapts: entropies, and how predictions spread over the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_EXAMPLES = 64
_POINTS = 100
# A task whose predictions crowd into one class by this share, and did so clearly less before, has degenerated.
_CROWDED, _MORE = 0.9, 0.2


@dataclass
class Watch:
    """Entropies of every step, and the predictions of the first and of the last steps, for each task."""

    tasks: Sequence[str]
    steps: int
    rows: int
    entropies: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, list[int]] = field(default_factory=dict)
    last: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task in self.tasks:
            self.entropies.setdefault(task, [])
            self.first.setdefault(task, [])
            self.last.setdefault(task, [])

    @property
    def window(self) -> int:
        """Steps whose predictions count as the first or as the last."""
        return max(1, min(-(-_EXAMPLES // self.rows), self.steps // 2))

    def note(self, step: int, task: str, entropy: float, predictions: Sequence[int]) -> None:
        """Takes what a step (from 0) has seen of a task."""
        self.entropies[task].append(entropy)
        if step < self.window:
            self.first[task] += predictions
        if step >= self.steps - self.window:
            self.last[task] += predictions

    def state(self) -> dict[str, Any]:
        """Everything noted so far, ready for JSON; what is noted later does not change it."""
        parts: dict[str, Any] = {"entropies": self.entropies, "first": self.first, "last": self.last}
        return {key: {task: list(values) for task, values in part.items()} for key, part in parts.items()}

    def record(self) -> dict[str, Any]:
        """Curves with at most a hundred points a task, and the spread of predictions before and after."""
        return {
            "curves": {"entropy": {task: _thinned(values) for task, values in self.entropies.items()}},
            "most_common_share": {
                "first": {task: _share(values) for task, values in self.first.items() if values},
                "last": {task: _share(values) for task, values in self.last.items() if values},
            },
        }

    def remarks(self) -> list[str]:
        """One sentence for each task whose predictions fell into one class while its entropy fell."""
        found = []
        for task in self.tasks:
            before, after = self.first[task], self.last[task]
            if not before or not after:
                continue
            crowded, earlier = _share(after), _share(before)
            begun, ended = _mean(self.entropies[task][: self.window]), _mean(self.entropies[task][-self.window :])
            if crowded >= _CROWDED and crowded - earlier >= _MORE and ended < begun:
                found.append(
                    f"{task}: the adaptation degenerated: {100 * crowded:.0f} % of its last predictions are one class "
                    f"({100 * earlier:.0f} % of the first), while the entropy fell from {begun:.3f} to {ended:.3f}"
                )
        return found


def restored(watch: Watch, state: Mapping[str, Any]) -> None:
    """Puts back what `state` gave."""
    watch.entropies = {task: list(values) for task, values in state["entropies"].items()}
    watch.first = {task: list(values) for task, values in state["first"].items()}
    watch.last = {task: list(values) for task, values in state["last"].items()}


def _share(values: Sequence[int]) -> float:
    return Counter(values).most_common(1)[0][1] / len(values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _thinned(values: Sequence[float]) -> list[list[float]]:
    """[step, mean of the steps around it] at most `_POINTS` times."""
    size = max(1, -(-len(values) // _POINTS))
    return [[at + 1, round(_mean(values[at : at + size]), 6)] for at in range(0, len(values), size)]
