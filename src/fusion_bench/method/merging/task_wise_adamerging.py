"""One learnt coefficient a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusion_bench.method.adamerging import AdaMerging


@dataclass(frozen=True)
class TaskWiseAdamerging(AdaMerging):
    r"""$\theta = \theta_0 + \sum_i \lambda_i \tau_i$ with $\lambda$ learnt on unlabelled data.

    Each step takes one batch of every task and lowers $\sum_k \mathrm{mean}_x H(p(\cdot \mid x; \theta))$ with the
    entropy $H = -\sum_c p_c \log(p_c + 10^{-8})$ by Adam. The gradient of a coefficient is the inner product
    $\langle \partial L / \partial \theta, \tau_i \rangle$, for which the task vectors are streamed from disk; no graph
    goes through the merge, and no model but the merged one is held. `plus_plus` trims the task vectors and frees them
    of sign conflicts first. Parameters alone have learnt coefficients; running statistics keep the initial one.

    Source: AdaMerging, arXiv 2310.02575.
    """

    source = "AdaMerging, arXiv 2310.02575"

    def tying(self) -> Literal["none", "block", "model"]:
        return "model"
