"""One unified task vector; for each task a mask and a factor that bring its model back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod

if TYPE_CHECKING:
    import torch

Factors = Mapping[str, float]
"""The factor of each task, by the name of its model."""


@dataclass(frozen=True)
class EmrMerging(TensorMethod):
    r"""$\theta^{(i)} = \theta_0 + s_i\, M_i \odot \tau_u$ for the task of model i: elect, mask, rescale; no tuning.

    *Elect*: $\gamma = \mathrm{sign}(\sum_i \tau_i)$, -1 where the sum is 0, and $\tau_u = \gamma \odot \max |\tau_i|$
    over the models with $\tau_i \gamma > 0$. *Mask*: $M_i = [\tau_i \gamma > 0]$, one bit an entry.
    *Rescale*: $s_i = \sum_t \mathrm{mean} |\tau_i^t| \,/\, \sum_t \mathrm{mean} |(M_i \odot \tau_u)^t|$ over the
    tensors t, one number a task; 1 where the mask is empty.

    The result is one checkpoint for each task, since the task must be known when the model is used. One model, equal
    models and models that change different entries are recovered exactly. Tensors without entries count nothing.

    Source: EMR-Merging, arXiv 2405.17461.
    """

    requirement = "the task of each input"
    source = "EMR-Merging, arXiv 2405.17461"
    needs_base = True
    per_task = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": {}}

    @property
    def pointwise(self) -> bool:
        return True

    def workspace(self, name: str, inputs: Inputs) -> float:
        # The signs of all models take a byte an entry.
        return 12 + len(inputs.models) / 4

    def passes(self, inputs: Inputs) -> int:
        return 2

    def survey(self, inputs: Inputs, scan: Scan) -> Factors:
        from fusion_bench.method.finite import require_finite
        from fusion_bench.ops import masks, sums

        everyone = range(len(inputs.models))

        def measure(slot: Slot) -> list[tuple[str, list[float], list[float]]]:
            pieces, done = [], 0
            for name, start, stop in slot.run:
                pieces.append((name, slice(done, done + stop - start)))
                done += stop - start
            own: list[list[float]] = []

            def read() -> Any:
                for index, delta in enumerate(slot.deltas):
                    flat = require_finite(slot, index, delta).reshape(-1)
                    own.append([sums.magnitude(flat[piece]) for _, piece in pieces])
                    yield flat

            unified, signs = masks.unified(read(), everyone)
            ours = []
            for index in everyone:
                shared = masks.agreeing(unified, signs[index])
                ours.append([sums.magnitude(shared[piece]) for _, piece in pieces])
            return [(name, [row[at] for row in own], [row[at] for row in ours]) for at, (name, _) in enumerate(pieces)]

        # Sums of means, each over the whole of its tensor.
        before, after = [0.0] * len(inputs.models), [0.0] * len(inputs.models)
        for found in scan(measure, "measuring task vectors"):
            for name, own, ours in found:
                numel = inputs.alignment.infos[name].numel
                for index in everyone if numel else ():
                    before[index] += own[index] / numel
                    after[index] += ours[index] / numel
        return {name: before[i] / after[i] if after[i] else 1.0 for i, name in enumerate(inputs.models)}

    def merge(self, slot: Slot, state: Factors) -> torch.Tensor:
        from fusion_bench.ops import linear, masks

        assert slot.task is not None, "one result a task"
        unified, signs = masks.unified(slot.deltas, [slot.model_names.index(slot.task)])
        return linear.shifted(slot.base, masks.agreeing(unified, signs[0]), state[slot.task])

    def remarks(self, inputs: Inputs, state: Factors) -> list[str]:
        return ["factors of the masked task vectors: " + ", ".join(f"{name} {s:.6g}" for name, s in state.items())]
