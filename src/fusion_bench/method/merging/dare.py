"""Drop entries of the task vectors at random, rescale the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.method.base import Inputs, Scan, Slot
from fusion_bench.method.dropping import Ratios, l1_ratios
from fusion_bench.method.wrapping import DeltaWrapper

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dare(DeltaWrapper):
    r"""$\tilde\tau_i = m_i \odot \tau_i / (1 - p)$ with $m_i \sim \mathrm{Bernoulli}(1 - p)$, merged by `inner`.

    The expectation of $\tilde\tau_i$ is $\tau_i$. Masks depend on the seed, the model's name, the tensor's name and the
    place of the entry, on nothing else. `rescale_mode=l1` multiplies by $\|\tau\|_1 / \|m \odot \tau\|_1$ of each
    tensor instead of $1/(1-p)$, as another implementation does; on small tensors the two differ much.
    `only_linear_weights` leaves embeddings, norms and biases whole.

    Source: Language models are super Mario, arXiv 2311.03099.
    """

    requirement = "hyperparameter search"
    source = "DARE, arXiv 2311.03099"
    random = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"drop_rate": 0.0, "inner": {"name": "task_arithmetic", "scaling_factor": 1.0}},
        "equal": {"drop_rate": 0.0, "inner": {"name": "task_arithmetic", "scaling_factor": "1/N"}},
    }

    drop_rate: float = hyper(0.5, "probability p of dropping an entry; density is 1 - p", low=0.0, below=1.0)
    rescale: bool = hyper(True, "enlarge what is kept, so that the expectation stays")
    rescale_mode: Literal["probability", "l1"] = hyper("probability", "by 1/(1-p), or by the ratio of L1 norms")
    only_linear_weights: bool = hyper(False, "drop in the weights of linear layers alone")

    def passes(self, inputs: Inputs) -> int:
        return self.inner.passes(inputs) + self._by_norm

    @property
    def _by_norm(self) -> bool:
        return self.rescale and self.rescale_mode == "l1" and self.drop_rate > 0

    def prepare(self, inputs: Inputs, scan: Scan) -> tuple[frozenset[str] | None, Ratios]:
        spared = None if not self.only_linear_weights else inputs.structure.linear
        return spared, l1_ratios(scan, self._dropped) if self._by_norm else {}

    def edit(self, slot: Slot, model: int, delta: torch.Tensor, state: Any) -> torch.Tensor:
        linear, ratios = state
        if self.drop_rate == 0 or (linear is not None and slot.name not in linear):
            return delta
        kept = self._dropped(slot, model, delta)
        if not self.rescale:
            return kept
        return kept.mul_(ratios[model, slot.name] if self._by_norm else 1 / (1 - self.drop_rate))

    def _dropped(self, slot: Slot, model: int, delta: torch.Tensor) -> torch.Tensor:
        from fusion_bench.ops import random

        drawn = random.bits(slot.seed, slot.model_names[model], slot.name, slot.start, slot.stop)
        return random.keep(delta, 1 - self.drop_rate, drawn)
