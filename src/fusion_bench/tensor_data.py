"""Examples that are tensors in memory, for modules of any kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, final

from fusion_bench.errors import DataError
from fusion_bench.fitting import Batch, TaskData

if TYPE_CHECKING:
    import torch

Forward = Callable[[Any, Mapping[str, "torch.Tensor"]], Any]
"""From a module and the inputs of a batch to logits: rows x classes."""


@final
class TensorData(TaskData):
    """Classification of tensors: the logits are ``module(x)``, or its output's ``logits``.

    `inputs`: a tensor with examples along its first dimension, or several by the names of the module's arguments;
    `labels`: the class of each example; `forward`: how the module makes logits of a batch's inputs (a mapping; one
    tensor is under ``x``) where calling it is not enough; `masks`: for padded sequences examples x tokens, True where
    a token is real, by stream.

    The order of the examples is a shuffle that the name decides; their `ids` are places in `inputs`. With a `forward`
    of your own nothing computed from the data is kept on disk, since its code cannot be told from another. Raises
    DataError where lengths differ or a label is no class index.
    """

    def __init__(
        self,
        name: str,
        inputs: torch.Tensor | Mapping[str, torch.Tensor],
        labels: torch.Tensor | Sequence[int],
        forward: Forward | None = None,
        masks: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        import torch

        self.name = name
        self._single = isinstance(inputs, torch.Tensor)
        self._inputs: dict[str, torch.Tensor] = {"x": inputs} if isinstance(inputs, torch.Tensor) else dict(inputs)
        self._labels = torch.as_tensor(labels)
        self._masks = dict(masks or {})
        self._forward = forward
        counts = {key: len(value) for key, value in {**self._inputs, **self._masks, "labels": self._labels}.items()}
        if len(set(counts.values())) != 1 or not len(self._labels):
            raise DataError(f"data {name!r}: {counts} examples; every tensor needs the same number, one or more.")
        if self._labels.dim() != 1 or self._labels.is_floating_point() or int(self._labels.min()) < 0:
            raise DataError(f"data {name!r}: labels must be one class index (0, 1, …) for each example.")
        self._order = list(range(len(self._labels)))
        Random(f"fusion_bench/tensor_data/{name}").shuffle(self._order)
        self.facts = {"data": name, "source": "tensors in memory", "examples": len(self._order)}
        self.digest = "" if forward is not None else self._digest()

    def __len__(self) -> int:
        return len(self._order)

    def collate(self, places: Sequence[int]) -> Batch:
        ids = [self._order[place] for place in places]
        return Batch(
            inputs={key: value[ids] for key, value in self._inputs.items()},
            ids=tuple(ids),
            labels=self._labels[ids],
            masks={key: value[ids] for key, value in self._masks.items()},
        )

    def forward(self, module: Any, batch: Batch) -> None:
        self.logits(module, batch)

    def logits(self, module: Any, batch: Batch) -> torch.Tensor:
        if self._forward is not None:
            output = self._forward(module, batch.inputs)
        else:
            output = module(batch.inputs["x"]) if self._single else module(**batch.inputs)
        named = getattr(output, "logits", None)
        logits: torch.Tensor = output if named is None else named
        return logits

    def log_probs(self, module: Any, batch: Batch) -> torch.Tensor:
        return self.logits(module, batch).log_softmax(-1)

    def gold_log_prob(self, module: Any, batch: Batch) -> torch.Tensor:
        assert batch.labels is not None
        logs = self.log_probs(module, batch)
        return logs.gather(1, batch.labels.to(logs.device)[:, None])[:, 0]

    def _digest(self) -> str:
        import torch

        found = hashlib.sha256(self.name.encode())
        for key, value in sorted({**self._inputs, **self._masks, "": self._labels}.items()):
            found.update(f"{key}/{value.dtype}/{tuple(value.shape)}/".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()
