"""The mean of the models plus what is leading in their differences from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot, TensorMethod
from fusion_bench.method.finite import require_finite
from fusion_bench.method.spectral import (
    MATRIX_KEYS_DOC,
    Matrices,
    MatrixKeys,
    cut,
    decomposition,
    is_matrix,
    matrices_of,
    told,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Cart(TensorMethod):
    r"""$\theta = \bar\theta + \lambda \sum_i \mathrm{SVD}_k(\theta_i - \bar\theta)$ around the mean.

    $\bar\theta$ is the mean of the models, $k = \lfloor \rho \cdot \min(out, in) \rfloor$ leading components of each
    matrix are kept, without those below $10^{-6} \sigma_{max}$. No base is needed: centring removes it. $\lambda$
    scales what is added to the mean, not a task vector: $\lambda = 0$, one model, two models (their residuals are
    opposite), equal models, full rank and rank 0 all give the mean. Published: $\rho = 0.08$ with $\lambda$ searched,
    and $\rho = 0.16$ with $\lambda = 2.3$ where ranks are then adapted. Other tensors get the mean. The models are
    read twice.

    Source: Revisiting weight averaging for model merging, arXiv 2412.12153.
    """

    requirement = "hyperparameter search"
    source = "CART, arXiv 2412.12153"

    residual_scaling: float = hyper(1.0, "the factor λ on the sum of the truncated residuals; 0 is the mean")
    rank_ratio: float = hyper(0.08, "ρ, share of the singular directions kept of each residual", low=0.0, high=1.0)
    matrix_keys: MatrixKeys = hyper("linear", MATRIX_KEYS_DOC)

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        return cut(name, inputs, self.matrix_keys)

    def workspace(self, name: str, inputs: Inputs) -> float:
        if not is_matrix(name, inputs, self.matrix_keys):
            return 9.0
        # A model's slice as stored and as computed; mean, sum, residual and a part of it in float64; a decomposition.
        return 10 + decomposition(*inputs.alignment.infos[name].shape)

    def passes(self, inputs: Inputs) -> int:
        return 2

    def survey(self, inputs: Inputs, scan: Scan) -> Matrices:
        return matrices_of(inputs, self.matrix_keys)

    def merge(self, slot: Slot, state: Matrices) -> torch.Tensor:
        import torch

        from fusion_bench.ops import linear, spectral

        models = len(slot.model_names)
        count = int(self.rank_ratio * min(slot.shape)) if slot.name in state.names else 0
        if count == 0 or self.residual_scaling == 0:
            return linear.mean(slot.models, models)
        finite = (require_finite(slot, index, model) for index, model in enumerate(slot.models))
        centre = spectral.total(finite).div_(models)
        added = torch.zeros_like(centre)
        dtype = torch.float64
        for model in slot.models:
            dtype = model.dtype
            added += spectral.rebuilt(spectral.factors(model - centre, count, exact=dtype == torch.float64))
        return centre.add_(added, alpha=self.residual_scaling).to(dtype)

    def remarks(self, inputs: Inputs, state: Any) -> list[str]:
        return told(inputs, self.matrix_keys)
