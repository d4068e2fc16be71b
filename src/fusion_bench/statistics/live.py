"""A live module seen by the names of its checkpoint."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.structure import Structure
from fusion_bench.errors import NonFiniteError
from fusion_bench.fitting import Fitting, stored_names

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layer:
    """A linear layer of a live module. `path`: in the module; `name`: of its weight in the checkpoint."""

    path: str
    name: str
    module: Any

    @property
    def weight(self) -> torch.Tensor:
        tensor: torch.Tensor = self.module.weight
        return tensor


def alive(model: str, checkpoint: Checkpoint, fitting: Fitting) -> torch.nn.Module:
    """The checkpoint as a live module without gradients; NonFiniteError where one of its parameters is not finite."""
    module = fitting.load(checkpoint)
    bad = [name for name, tensor in tensors_of(module, checkpoint).items() if not is_finite(tensor)]
    if bad:
        raise NonFiniteError(
            "\n".join(f"model {model!r}: tensor {name!r} holds NaN or infinite entries" for name in bad)
            + ".\nRepair the file, or leave the model out (modelpool.select)."
        )
    return module


def digest_of(names: Iterable[str]) -> str:
    """What tells one set of names from another, for caches."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def is_finite(values: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    import torch

    # A finite sum proves finite entries at a third of the cost of testing each one.
    values = values.detach()
    return bool(torch.isfinite(values.sum()) or torch.isfinite(values).all())


def tensors_of(module: torch.nn.Module, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Parameters and floating buffers by the names that the checkpoint stores them under, each once.

    A tensor of several names goes by the one that the checkpoint has.
    """
    names = stored_names(module, checkpoint)
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for inside, tensor in module.state_dict(keep_vars=True).items():
        name = names.get(inside, checkpoint.stored(inside))
        known = found.get(id(tensor))
        if tensor.is_floating_point() and (known is None or known[0] not in checkpoint):
            found[id(tensor)] = name, tensor
    return dict(found.values())


def parameters_of(module: torch.nn.Module, checkpoint: Checkpoint) -> dict[str, torch.nn.Parameter]:
    """Floating parameters by the names that the checkpoint stores them under, each once."""
    import torch

    tensors = tensors_of(module, checkpoint)
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.nn.Parameter)}


def linear_layers(module: torch.nn.Module, checkpoint: Checkpoint, structure: Structure) -> list[Layer]:
    """The layers that multiply by a weight which `structure` calls linear: nn.Linear and Conv1D of transformers.

    Other modules that hold such a weight use it in ways of their own, and are left out.
    """
    import torch

    names = {id(tensor): name for name, tensor in tensors_of(module, checkpoint).items()}
    found = []
    for path, inside in module.named_modules():
        if isinstance(inside, torch.nn.Linear) or is_conv1d(inside):
            name = names.get(id(inside.weight), "")
            if name in structure.linear:
                found.append(Layer(path, name, inside))
    return found


def is_conv1d(module: Any) -> bool:
    """Whether this is the linear layer of GPT-2, which stores its weight in x out."""
    # Where transformers was never imported there is none of its layers.
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return kind is not None and isinstance(module, kind)
