"""An architecture for any state dict, and data for it: what methods that look at data are tested with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fusion_bench.fitting import Batch, TaskData

CLASSES = 3


class Toy(torch.nn.Module):
    """Logits that depend on every floating tensor of a state dict; integer tensors are buffers."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            if tensor.is_floating_point():
                self.register_parameter(name, torch.nn.Parameter(tensor.clone()))
            else:
                self.register_buffer(name, tensor.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(x), CLASSES, dtype=torch.float64)
        for place, parameter in enumerate(self.parameters()):
            weight = parameter.double().sum() / max(1, parameter.numel()) ** 0.5
            column = x[:, place % x.shape[1]].double()
            out = out + torch.tanh(weight * column)[:, None] * torch.tensor([1.0, -0.5, 0.1 * place])
        return out


class ToyData(TaskData):
    """Random rows put to a module that gives logits; labels are drawn."""

    def __init__(self, name: str, width: int = 4, count: int = 12, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        self.name, self.facts, self.digest = name, {"split": "train", "examples": count}, f"toy-{name}-{count}"
        self.x = torch.randn(count, width, generator=generator).to(dtype)
        self.y = torch.randint(0, CLASSES, (count,), generator=generator)
        self.labelled = True

    def __len__(self) -> int:
        return len(self.x)

    def collate(self, places: Sequence[int]) -> Batch:
        chosen = list(places)
        return Batch({"x": self.x[chosen]}, tuple(chosen), self.y[chosen])

    def forward(self, module: Any, batch: Batch) -> None:
        self.logits(module, batch)

    def logits(self, module: Any, batch: Batch) -> torch.Tensor:
        x = batch.inputs["x"]
        parameter = next(iter(module.parameters()))
        out: torch.Tensor = module(x.to(parameter.dtype))
        return out

    def log_probs(self, module: Any, batch: Batch) -> torch.Tensor:
        return self.logits(module, batch).log_softmax(-1)

    def gold_log_prob(self, module: Any, batch: Batch) -> torch.Tensor:
        assert batch.labels is not None
        return self.log_probs(module, batch).gather(1, batch.labels[:, None])[:, 0]
