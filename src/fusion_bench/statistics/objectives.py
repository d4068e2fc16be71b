"""The scalars whose squared gradients add up to the Fisher information of one example."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.errors import DataError, NonFiniteError

if TYPE_CHECKING:
    import torch

    from fusion_bench.fitting import Batch, TaskData

Estimator = Literal["true", "sampled", "empirical"]
"""Whose log-probability: every class by its probability, one class drawn by it, the right answer."""


def objectives(
    estimator: Estimator, model: str, data: TaskData, module: Any, batch: Batch, place: int, seed: int
) -> list[torch.Tensor]:
    r"""Scalars $s_k$ of a batch of one example with $\sum_k \nabla s_k \nabla s_k^\top$ its Fisher information.

    ``true``: $\sum_c p_c \nabla\ell_c \nabla\ell_c^\top$ of $\ell = \log p$. Since $\sum_c p_c \nabla\ell_c = 0$ it is
    $J^\top (\mathrm{diag}(p) - p p^\top) J$ of rank C - 1, and the eigenvectors of that small matrix give the same sum
    with one backward pass fewer than there are classes. ``sampled``: $c \sim p$, drawn by (seed, task, place) alone.
    ``empirical``: the right answer. Raises NonFiniteError where the module's outputs are not numbers.
    """
    if estimator == "empirical":
        gold = data.gold_log_prob(module, batch)[0]
        return [] if not _finite(gold.detach(), model, data) else [gold]
    logs = data.log_probs(module, batch)[0]
    probabilities = logs.detach().double().exp().cpu()
    _finite(probabilities, model, data)
    total = float(probabilities.sum())
    if abs(total - 1) > 1e-3:
        raise DataError(
            f"task {data.name!r}: the probabilities of an example's classes sum to {total:.4f}. "
            "TaskData.log_probs must give log-probabilities that are normalised over the classes."
        )
    if estimator == "sampled":
        drawn = Random(f"fusion_bench/fisher/{seed}/{data.name}/{place}").random() * total
        reached = (probabilities.cumsum(0) > drawn).nonzero()
        return [logs[int(reached[0]) if len(reached) else int(probabilities.argmax())]]
    return _directions(logs, probabilities / total)


def _directions(logs: torch.Tensor, probabilities: torch.Tensor) -> list[torch.Tensor]:
    import torch

    possible = probabilities > 0
    p = probabilities[possible]
    values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
    # The smallest eigenvalue is 0, that of the vector of ones.
    factors = (vectors * values.clamp(min=0).sqrt())[:, 1:].to(logs.device, logs.dtype)
    chosen = logs[possible.to(logs.device)]
    return [(factors[:, k] * chosen).sum() for k in range(factors.shape[1])]


def _finite(values: torch.Tensor, model: str, data: TaskData) -> bool:
    import torch

    if not torch.isfinite(values).all():
        raise NonFiniteError(
            f"model {model!r}: its outputs on the data of {data.name!r} are NaN or infinite. "
            "Check the model's weights and the data."
        )
    return True
