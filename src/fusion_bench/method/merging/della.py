"""Drop entries of the task vectors at random, small ones more often; rescale the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot, TensorMethod
from fusion_bench.method.dropping import Ratios, l1_ratios
from fusion_bench.method.wrapping import DeltaWrapper

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Della(DeltaWrapper):
    r"""$\tilde\tau_{ij} = m_{ij} \tau_{ij} / p_{ij}$ with $m_{ij} \sim \mathrm{Bernoulli}(p_{ij})$, merged by `inner`.

    $p = d - \epsilon + 2 \epsilon \frac{r - 1}{n - 1}$ with the density d and the rank r = 1 … n of the magnitude
    within its row (r = n the largest; of equal ones the first counts as the larger); the mean of p is d. A row is what
    belongs to one index of the first dimension, a tensor of one dimension is one row, a row of one entry has p = d.
    The expectation of $\tilde\tau_i$ is $\tau_i$. Draws depend on the seed, the names of model and tensor and the place
    of the entry alone, and are those of `dare`: with $\epsilon = 0$ the two agree. `rescale_mode=l1` multiplies by
    $\|\tau\|_1 / \|m \odot \tau\|_1$ of each tensor instead, as another implementation does. density 1 drops nothing.

    `inner` defaults to the normalised consensus of the paper: signs elected as in TIES-Merging, the mean of those that
    agree. ``inner={name: task_arithmetic, scaling_factor: 1}`` is the plain sum (`della_linear`).

    Errors: density and epsilon that give probabilities outside of 0 … 1.

    Source: DELLA-Merging, arXiv 2406.11617.
    """

    requirement = "hyperparameter search"
    source = "DELLA-Merging, arXiv 2406.11617"
    random = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {"density": 1.0}, "equal": {"density": 1.0}}

    inner: TensorMethod = hyper(
        {"name": "ties_merging", "threshold": 100.0, "merge_func": "mean", "scaling_factor": 1.0},
        "the method that merges what was edited",
    )
    density: float = hyper(0.5, "kept share, the mean of the probabilities", above=0.0, high=1.0)
    epsilon: float = hyper(0.15, "half the difference between the largest and the smallest probability of a row",
                           low=0.0, below=0.5)  # fmt: skip
    rescale: bool = hyper(True, "enlarge what is kept, so that the expectation stays")
    rescale_mode: Literal["probability", "l1"] = hyper(
        "probability", "each entry by 1/p of its own, or all by the ratio of L1 norms"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.density - self.epsilon, self.density + self.epsilon
        if self.density < 1 and (low <= 0 or high >= 1):
            raise ConfigError(
                f"method.density={self.density:g} with method.epsilon={self.epsilon:g}: the probabilities would go "
                f"from {low:g} to {high:g}. Take an epsilon below {min(self.density, 1 - self.density):g}."
            )

    def cut(self, name: str, inputs: Inputs) -> Granularity:
        if self.density >= 1:
            return "element"
        return "row" if len(inputs.alignment.infos[name].shape) <= 2 else "tensor"

    def workspace(self, name: str, inputs: Inputs) -> float:
        # Ranks are sorted with positions in 64 bits, probabilities are float64.
        return self.inner.workspace(name, inputs) + 14

    def passes(self, inputs: Inputs) -> int:
        return self.inner.passes(inputs) + self._by_norm

    def operations(self, name: str, inputs: Inputs) -> float:
        # Sorting, in units of the rest.
        sorting = 12.0 * inputs.alignment.infos[name].numel * len(inputs.models) * self.passes(inputs)
        return self.inner.operations(name, inputs) + sorting

    @property
    def _by_norm(self) -> bool:
        return self.rescale and self.rescale_mode == "l1" and self.density < 1

    def prepare(self, inputs: Inputs, scan: Scan) -> Ratios:
        return l1_ratios(scan, lambda slot, _, delta: self._dropped(slot, _, delta)[0]) if self._by_norm else {}

    def edit(self, slot: Slot, model: int, delta: torch.Tensor, state: Ratios) -> torch.Tensor:
        if self.density >= 1:
            return delta
        kept, chances = self._dropped(slot, model, delta)
        if not self.rescale:
            return kept
        return kept.mul_(state[model, slot.name]) if self._by_norm else kept.div_(chances)

    def _dropped(self, slot: Slot, model: int, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is left of a delta, and the probabilities."""
        from fusion_bench.ops import random, sparsify

        if delta.numel() == 0:
            return delta, delta
        width = prod(slot.shape[1:]) if len(slot.shape) > 1 else prod(slot.shape)
        # A sampled pass may ask for a piece of a row; it is only judged by, so the piece stands for the row.
        whole = slot.start % width == 0 and delta.numel() % width == 0
        chances = sparsify.keep_probabilities(
            delta.view(-1, width if whole else delta.numel()), self.density, self.epsilon
        )
        drawn = random.bits(slot.seed, slot.model_names[model], slot.name, slot.start, slot.stop)
        chances = chances.view(delta.shape)
        return random.keep(delta, chances, drawn), chances
