"""Layers merged by conjugate gradients on the quadratic forms of the models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.build import hyper
from fusion_bench.method.solved_layers import Found, SolvedLayers, Weights

if TYPE_CHECKING:
    import torch

    from fusion_bench.statistics import Statistics

    ByModel = Mapping[str, Statistics]

Init = Literal["mean", "zeros", "pretrained", "task_arithmetic", "path"]

# Matrices up to this many entries stay in memory between the steps; larger ones are read anew.
_KEPT_ENTRIES = 2**22


@dataclass(frozen=True)
class SolvedConjugate(SolvedLayers):
    r"""$(\sum C_i) W = \sum C_i W_i$ by steps from $W_0$; $C_i W = A_i W$ or, with `outputs`, $A_i W B_i$.

    $A_i$ (in x in) are the `statistics`, $B_i$ (out x out) the `outputs`. Both sides are scaled by one power of two,
    so that small gradients do not leave the range of float32.
    """

    source = "MaTS, arXiv 2312.04339"

    iterations: int = hyper(100, "steps at most", low=0)
    tolerance: float = hyper(1e-5, "residual over right side at which a layer is done", low=0.0)
    init: Init = hyper("mean", "where the steps begin")
    start: Any = hyper(None, "the checkpoint that init=path means")
    scaling_factor: float = hyper(0.3, "λ of init=task_arithmetic")
    jacobi: bool = hyper(False, "divide residuals by the diagonal of the system")

    def buffers(self, width: int, outputs: int, models: int) -> float:
        # Six of the size of the weight in the steps, two in products; inner products widen one.
        kept = min(models * (width**2 + outputs**2), _KEPT_ENTRIES) if self.outputs is not None else 0
        squares = 3.0 * width**2 + (2.0 * outputs**2 if self.outputs is not None else 0)
        return 12.0 * width * outputs + squares + kept

    def work(self, width: int, outputs: int, models: int) -> float:
        products = 2.0 * models * (width**2 * outputs + width * outputs**2)
        if self.outputs is None:
            products = 2.0 * width**2 * outputs
        return products * (self.iterations + 2) + 10.0 * width * outputs * self.iterations

    def solve(self, weights: Weights, statistics: Mapping[str, Statistics]) -> tuple[torch.Tensor, Any]:
        from fusion_bench.ops.conjugate_gradient import conjugate_gradient

        form = _Form(weights, statistics, self.outputs)
        right, mean = form.right()
        start = self._start(weights, mean)
        diagonal = form.diagonal(right) if self.jacobi else None
        solved = conjugate_gradient(form.product, right, start, self.iterations, self.tolerance, diagonal)
        scale = 1 / form.scale
        note = {
            "steps": int(solved.steps),
            "residuals": [float(f"{float(norm) * scale:.6g}") for norm in solved.norms],
            "right": float(f"{float(solved.right) * scale:.6g}"),
        }
        return solved.x, note

    def told(self, state: Found) -> list[str]:
        if not state.notes:
            return []
        last = {n: note["residuals"][-1] / note["right"] for n, note in state.notes.items() if note["right"] > 0}
        within = sum(share <= self.tolerance for share in last.values()) + len(state.notes) - len(last)
        worst = max(last, key=lambda name: last[name], default=None)
        told = f"conjugate gradients: {within} of {len(state.notes)} layers reached tolerance={self.tolerance:g}"
        if worst is not None:
            told += f"; the residual farthest from it is {last[worst]:.3g} of the right side, in {worst}"
        return [told]

    def _start(self, weights: Weights, mean: torch.Tensor) -> torch.Tensor:
        import torch

        if self.init == "mean":
            return mean
        if self.init == "zeros":
            return torch.zeros_like(mean)
        if self.init == "path":
            return weights.of(self.start).to(mean.device, mean.dtype)
        base = weights.base
        if self.init == "pretrained":
            return base.clone()
        # θ0 + λ Σ τ of N models is θ0 (1 - λN) + λN times their mean.
        share = self.scaling_factor * len(weights)
        return base.lerp(mean, share)


class _Form:
    """The models' quadratic forms of one layer. `scale`: what both sides are multiplied by."""

    def __init__(self, weights: Weights, left: ByModel, right: ByModel | None) -> None:
        self._weights = weights
        self._left = [left[model] for model in weights.models]
        self._right = None if right is None else [right[model] for model in weights.models]
        every = [*self._left, *(self._right or [])]
        entries = sum(found.tensors.info(found.index[weights.name]).numel for found in every)
        self._small = entries <= _KEPT_ENTRIES
        self._kept: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._whole: torch.Tensor | None = None
        self.scale = 1.0

    def right(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The right side, scaled, and the mean of the weights."""
        import torch

        total = right = torch.empty(0)
        size = 0.0
        for place, (weight, (a, b)) in enumerate(zip(self._weights, self._pairs(), strict=True)):
            a, b = a.to(weight.device, weight.dtype), None if b is None else b.to(weight.device, weight.dtype)
            image = _image(weight, a, b)
            size += float(a.diagonal().double().mean()) * (1 if b is None else float(b.diagonal().double().mean()))
            right = image if place == 0 else right.add_(image)
            total = weight.clone() if place == 0 else total.add_(weight)
            if b is None:
                self._whole = a.clone() if self._whole is None else self._whole.add_(a)
        self.scale = 2.0 ** -round(math.log2(size)) if size > 0 and math.isfinite(size) else 1.0
        mean = total if len(self._weights) == 1 else total.div_(len(self._weights))
        return right.mul_(self.scale), mean

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of the forms applied to X, scaled."""
        if self._whole is not None:
            return (self._whole @ x).mul_(self.scale)
        out: torch.Tensor | None = None
        for a, b in self._pairs():
            image = _image(x, a.to(x.device, x.dtype), None if b is None else b.to(x.device, x.dtype))
            out = image if out is None else out.add_(image)
        assert out is not None
        return out.mul_(self.scale)

    def diagonal(self, like: torch.Tensor) -> torch.Tensor:
        """The diagonal of the system in the shape of the weight, scaled."""
        import torch

        out = torch.zeros_like(like)
        for a, b in self._pairs():
            columns = torch.ones_like(like[0]) if b is None else b.diagonal().to(like.device, like.dtype)
            rows = a.diagonal().to(like.device, like.dtype)
            out.addr_(rows, columns)
        return out.mul_(self.scale)

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """A and B of each model."""
        if self._kept:
            yield from self._kept
            return
        held = []
        for place, left in enumerate(self._left):
            name = self._weights.name
            pair = left[name], None if self._right is None else self._right[place][name]
            if self._small:
                held.append(pair)
            yield pair
        self._kept = held


def _image(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    # a @ (x b) is as much work as (a x) @ b: both are d^2 m + d m^2.
    return a @ x if b is None else a @ x @ b
