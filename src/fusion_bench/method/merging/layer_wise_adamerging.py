"""One learnt coefficient for every model and tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusion_bench.build import hyper
from fusion_bench.method.adamerging import AdaMerging


@dataclass(frozen=True)
class LayerWiseAdamerging(AdaMerging):
    r"""$\theta^l = \theta_0^l + \sum_i \lambda_i^l \tau_i^l$ for every parameter tensor $l$, $\lambda$ learnt on unlabelled data.

    Each step takes one batch of every task and lowers $\sum_k \mathrm{mean}_x H(p(\cdot \mid x; \theta))$ with the
    entropy $H = -\sum_c p_c \log(p_c + 10^{-8})$ by Adam. The gradient of a coefficient is the inner product
    $\langle \partial L / \partial \theta^l, \tau_i^l \rangle$: gradient, update and new merge of a tensor share one
    read of its task vectors, and no model but the merged one is held. `tie` lets the tensors of a block of layers, or
    of the whole model, share their coefficients; `plus_plus` trims the task vectors and frees them of sign conflicts
    first. Parameters alone have learnt coefficients; running statistics keep the initial one.

    Source: AdaMerging, arXiv 2310.02575.
    """  # noqa: E501

    source = "AdaMerging, arXiv 2310.02575"

    tie: Literal["none", "block", "model"] = hyper("none", "which tensors share coefficients")

    def tying(self) -> Literal["none", "block", "model"]:
        return self.tie
