"""Correct the singular values of what another method merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fusion_bench.build import hyper
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot
from fusion_bench.method.correcting import MergeWrapper
from fusion_bench.method.spectral import (
    MATRIX_KEYS_DOC,
    Deltas,
    Matrices,
    MatrixKeys,
    cut,
    decomposition,
    is_matrix,
    matrices_of,
    told,
)
from fusion_bench.method.wrapping import coarser

if TYPE_CHECKING:
    import torch

_ALPHAS: Final = {"iso_cts": 0.2, "tsv_merging": 1.0, "wudi": 1.0, "swudi": 1.0, "aswudi": 1.0}


@dataclass(frozen=True)
class Svc(MergeWrapper):
    r"""$\sigma_r \leftarrow \sigma_r\, N / \sum_i \max(\alpha, s_{ri})$ for $\Delta = U \Sigma V^\top$.

    $\Delta$ is what `inner` merged, minus the base; $s_{ri} = \langle a, b \rangle / \|b\|^2$ with $a = u_r^\top
    \Delta$ and $b = u_r^\top \tau_i$ tells how often the merge counts what task $i$ has in the direction $u_r$; $s =
    \alpha$ where $\|b\|^2 < 10^{-12}$. Singular vectors stay; $\alpha = 1$ never raises a singular value; a sum of
    $N$ equal task vectors becomes that task vector; one model stays that model for $\alpha \le 1$. Directions below
    $10^{-6} \sigma_{max}$ keep their singular value. float64.

    `alpha` null: 1 around TSV-M and WUDI, 0.2 around Iso-CTS, else 0.1. Tensors that are not matrices stay as `inner`
    merged them. The models are read once more than by `inner`, and every matrix is merged whole.

    Source: Singular value calibration, arXiv 2602.05536.
    """

    requirement = "hyperparameter search"
    source = "SVC, arXiv 2602.05536"
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"inner": {"name": "task_arithmetic", "scaling_factor": 1.0}},
        "equal": {"inner": {"name": "task_arithmetic", "scaling_factor": "1/N"}},
    }

    alpha: float | None = hyper(None, "α, the least s that counts; null: what was published for inner", above=0.0)
    matrix_keys: MatrixKeys = hyper("linear", MATRIX_KEYS_DOC)

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        return coarser(cut(name, inputs, self.matrix_keys), self.inner.granularity(name, inputs))

    def workspace(self, name: str, inputs: Inputs) -> float:
        inner = self.inner.workspace(name, inputs)
        if not is_matrix(name, inputs, self.matrix_keys):
            return inner
        # While the inner method merges; then base, slice, merge, Δ, the factors, two products in float64.
        return max(inner, 14 + decomposition(*inputs.alignment.infos[name].shape))

    def passes(self, inputs: Inputs) -> int:
        return self.inner.passes(inputs) + 1

    def survey(self, inputs: Inputs, scan: Scan) -> tuple[Any, Matrices]:
        return self.inner.survey(inputs, scan), matrices_of(inputs, self.matrix_keys)

    def merge(self, slot: Slot, state: tuple[Any, Matrices]) -> torch.Tensor:
        import torch

        from fusion_bench.ops import calibration

        merged = self.inner.merge(slot, state[0])
        # What is not finite is left to the check of every merge, which names the model at fault.
        if slot.name not in state[1].names or not torch.isfinite(merged).all():
            return merged
        merged, turned = merged.clone(), slot.name in state[1].turned
        change = merged.double() - slot.base
        alpha = _ALPHAS.get(self.inner.key(), 0.1) if self.alpha is None else self.alpha
        deltas = Deltas(slot, turned)
        correction = calibration.correction(change.T if turned else change, deltas, alpha, deltas.exact)
        return merged.add_(correction.T if turned else correction)

    def remarks(self, inputs: Inputs, state: tuple[Any, Matrices]) -> list[str]:
        own = told(inputs, self.matrix_keys)
        return own + [remark for remark in self.inner.remarks(inputs, state[0]) if remark not in own]
