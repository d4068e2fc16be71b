"""The plan of an adapter over a base: which tensors change and how, made from headers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from fusion_bench.checkpoint.adapter_edits import AddLowRank, AddVector, Dora, Edit, Factors, Grid, Multiply
from fusion_bench.checkpoint.adapter_names import BaseNames, sort_out
from fusion_bench.checkpoint.adapter_saved import Plan, place_saved
from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.dtypes import compute_name, torch_dtype
from fusion_bench.checkpoint.peft_config import AdapterConfig
from fusion_bench.checkpoint.recent import Recent
from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Original = Callable[[str, int, int], "torch.Tensor"]
MAX_LINES = 20
# Factors kept at hand: workers go through a model tensor by tensor, so a few suffice.
KEPT = 16


class Planner:
    """Makes the plan; `plan` raises one CheckpointError that lists everything that does not fit."""

    def __init__(
        self, base: Checkpoint, tensors: Checkpoint, config: AdapterConfig, where: str, original: Original
    ) -> None:
        """`original(name, start, stop)`: entries of a stored tensor before its edit, in compute precision."""
        self._base = base
        self._tensors = tensors
        self._config = config
        self._where = where
        self._original = original
        self._names = BaseNames(base)
        self._recent = Recent(KEPT)
        self._faults: list[str] = []
        self._turned: dict[str, bool] = {}
        self._plan = Plan(dict(base.infos), dict(base.aliases))

    def plan(self) -> Plan:
        contents = sort_out(self._tensors)
        self._faults += [f"{name}: a parameter of another technique than LoRA or (IA)^3" for name in contents.foreign]
        if not contents.modules and not contents.tensors:
            self._faults.append("the file holds no adapter parameters")
        self._faults += place_saved(
            self._plan, contents.tensors, base=self._base, tensors=self._tensors, config=self._config, names=self._names
        )
        for module, parts in contents.modules.items():
            self._edit(module, parts)
        if self._faults:
            shown = "\n".join(f"  {fault}" for fault in self._faults[:MAX_LINES])
            more = f"\n  and {len(self._faults) - MAX_LINES} more" if len(self._faults) > MAX_LINES else ""
            raise CheckpointError(f"{self._where}: does not fit its base ({len(self._faults)} faults):\n{shown}{more}")
        self._plan.infos = dict(sorted(self._plan.infos.items()))
        return self._plan

    # Adapted modules

    def _edit(self, module: str, parts: Mapping[str, str]) -> None:
        found = self._names.find(f"{module}.weight")
        if found is None:
            self._faults.append(f"{module}: the base has no {module}.weight")
            return
        weight = self._stored(found)
        info = self._plan.infos[weight]
        if not info.floating:
            self._faults.append(f"{module}: the base's weight is {info.dtype}; quantised bases are not folded")
        elif "ia3" in parts:
            self._edit_ia3(module, parts, weight, self._beside(found))
        elif {"A", "B"} <= parts.keys():
            self._edit_lora(module, parts, weight, ("A", "B"))
            if "bias" in parts:
                self._edit_bias(module, parts["bias"], self._beside(found))
        elif {"embedding_A", "embedding_B"} <= parts.keys():
            self._edit_lora(module, parts, weight, ("embedding_A", "embedding_B"))
        else:
            self._faults.append(f"{module}: incomplete, the file holds only its {', '.join(sorted(parts))}")

    def _edit_lora(self, module: str, parts: Mapping[str, str], weight: str, roles: tuple[str, str]) -> None:
        shape = self._plan.infos[weight].shape
        down, up = self._tensors.info(parts[roles[0]]).shape, self._tensors.info(parts[roles[1]]).shape
        rank, dtype = self._config.rank_of(module), self._dtype(weight)
        transposed = self._transposed(module, down, up, shape, embedding=roles[0] != "A")
        if transposed is None or down[0] != rank or up[1] != rank or not _pointwise(up):
            expected = f"the base's {list(shape)} and rank {rank}"
            self._faults.append(f"{module}: factors {list(up)} and {list(down)} do not fit {expected}")
            return
        scale = self._config.scaling_of(module)
        grid = Grid(shape[0], math.prod(shape[1:]))

        def factors() -> Factors:
            def matrix(role: str) -> torch.Tensor:
                part = self._tensors[parts[role]].to(torch_dtype(dtype))
                return part.reshape(part.shape[0], -1)

            return Factors(matrix(roles[0]), matrix(roles[1]), scale, transposed)

        edit: Edit = AddLowRank(grid, lambda: self._recent.get(weight, factors))
        if self._config.dora and "magnitude" in parts:
            edit = Dora(
                grid,
                lambda: self._recent.get(weight, factors),
                lambda: self._tensors.read(parts["magnitude"]).to(torch_dtype(dtype)),
                lambda start, stop: self._original(weight, start, stop),
            )
            outputs = shape[1] if transposed else shape[0]
            if self._tensors.info(parts["magnitude"]).numel != outputs:
                self._faults.append(f"{module}: its magnitude vector does not have the base's {outputs} outputs")
        elif self._config.dora or "magnitude" in parts:
            self._faults.append(f"{module}: use_dora={self._config.dora} contradicts the file's magnitude vectors")
        self._add(module, weight, edit)

    def _edit_bias(self, module: str, stored: str, bias: str | None) -> None:
        if bias is None or self._plan.infos[bias].shape != self._tensors.info(stored).shape:
            self._faults.append(f"{module}: lora_bias needs a bias in the base")
            return
        dtype = self._dtype(bias)
        vector = self._vector(stored, dtype)
        self._add(module, bias, AddVector(vector, self._config.scaling_of(module)))

    def _edit_ia3(self, module: str, parts: Mapping[str, str], weight: str, bias: str | None) -> None:
        info, shape = self._tensors.info(parts["ia3"]), self._plan.infos[weight].shape
        feedforward = self._config.is_feedforward(module)
        if len(info.shape) == 2 and 1 in info.shape and info.numel > 1:
            # The shape says it more reliably than patterns over names: (1, in) scales inputs, (out, 1) outputs.
            feedforward = info.shape[0] == 1
        inputs, outputs = (0, 1) if self._stores_transposed(module, shape) else (1, 0)
        axis: Literal[0, 1] = 1 if (inputs if feedforward else outputs) else 0
        if len(shape) < 2 or shape[axis] != info.numel:
            self._faults.append(f"{module}: its vector of {info.numel} does not fit the base's {list(shape)}")
            return
        vector = self._vector(parts["ia3"], self._dtype(weight))
        grid = Grid(shape[0], math.prod(shape[1:]))
        self._add(module, weight, Multiply(grid, vector, axis, shape))
        if not feedforward and bias is not None:
            length = self._plan.infos[bias].numel
            self._add(module, bias, Multiply(Grid(length, 1), vector, 0, (length,)))

    def _add(self, module: str, name: str, edit: Edit) -> None:
        if name in self._plan.edits:
            other = self._plan.origins[name]
            self._faults.append(f"{module}: changes the same tensor of the base as {other} ({name}); untie them first")
        self._plan.edits[name] = edit
        self._plan.origins[name] = module

    # Shapes and names

    def _transposed(
        self, module: str, down: tuple[int, ...], up: tuple[int, ...], shape: tuple[int, ...], embedding: bool
    ) -> bool | None:
        """Whether the base stores the transpose of B A; None where it stores neither."""
        if min(len(down), len(up), len(shape)) < 2:
            return None
        plain, turned = (up[0], *down[1:]) == shape, len(down) == 2 and (down[1], up[0]) == shape
        if embedding:
            return True if turned else None
        if plain and turned:
            return self._stores_transposed(module, shape)
        return turned if plain or turned else None

    def _stores_transposed(self, module: str, shape: tuple[int, ...]) -> bool:
        """Whether a module keeps its weight as in x out (GPT-2's Conv1D) rather than out x in.

        Square weights do not show it, and fan_in_fan_out holds whatever PEFT met last. Biases tell: their length is
        the number of outputs, in this module or in its namesakes in other layers.
        """
        if len(shape) != 2:
            return False
        leaf = "." + module.rpartition(".")[2] + ".weight"
        if leaf not in self._turned:
            self._turned[leaf] = self._config.fan_in_fan_out
            for name in self._base:
                bias = name.removesuffix("weight") + "bias"
                sides = self._base.info(name).shape
                if f".{name}".endswith(leaf) and bias in self._base and len(sides) == 2 and sides[0] != sides[1]:
                    self._turned[leaf] = sides[1] == self._base.info(bias).numel
                    break
        return self._turned[leaf]

    def _stored(self, base_name: str) -> str:
        """The stored name, in the result, of a tensor of the base."""
        return base_name if base_name in self._plan.infos else self._plan.aliases[base_name]

    def _beside(self, weight: str) -> str | None:
        bias = weight.removesuffix("weight") + "bias"
        return self._stored(bias) if bias in self._base else None

    # Values, loaded when they are needed

    def _dtype(self, name: str) -> str:
        return compute_name(self._plan.infos[name].dtype)

    def _vector(self, stored: str, dtype: str) -> Callable[[], torch.Tensor]:
        return lambda: self._recent.get(f"{stored}:{dtype}", lambda: self._tensors.read(stored).to(torch_dtype(dtype)))


def _pointwise(shape: tuple[int, ...]) -> bool:
    """B is a matrix, or a convolution with kernels of one entry, ungrouped."""
    return len(shape) >= 2 and all(length == 1 for length in shape[2:])
