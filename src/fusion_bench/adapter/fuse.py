"""Fusing a pool of adapters into one adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from fusion_bench.adapter.adapter import Adapter, Others, Rank, kept_remark
from fusion_bench.adapter.concatenation import coefficients, concatenate
from fusion_bench.adapter.core import fuse_in_core
from fusion_bench.adapter.extract import extract, keep_others, refusal
from fusion_bench.adapter.ia3 import fuse_vectors
from fusion_bench.adapter.knots import fuse_in_knots
from fusion_bench.adapter.members import Members, reference, survey, task_type
from fusion_bench.adapter.small import Part
from fusion_bench.api import inputs_of
from fusion_bench.checkpoint.base import Dense, LowRank, Scale
from fusion_bench.checkpoint.folder import listed
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Inputs, Merged, ModelFusionAlgorithm, TensorMethod
from fusion_bench.method.budget import check_budget
from fusion_bench.method.fitted import FittedMethod
from fusion_bench.method.inputs import DEFAULT_BUDGET
from fusion_bench.progress import Progress

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.modelpool.base import ModelPool

Space = Literal["auto", "core", "knots", "dense"]
Way = Literal["sum", "core", "knots", "dense", "ia3"]
"""How a fusion is carried out: factors side by side, Core Space, KnOTS, full tensors, (IA)^3 vectors."""

_NO_BUDGET = 2**62


def fuse_adapters(
    method: ModelFusionAlgorithm,
    pool: ModelPool,
    *,
    rank: int | float | None = None,
    space: Space = "auto",
    others: Others = "refuse",
    seed: int = 42,
    threads: int = 0,
    progress: Progress | None = None,
    budget: int = DEFAULT_BUDGET,
) -> Adapter:
    """Fuses the members of `pool` into one adapter over its base.

    Pools of LoRA (rsLoRA, patterns and mixed ranks included) are merged in the space of their factors: weighted sums
    exactly, by concatenation; other methods in Core Space, or with ``space="knots"`` in that of KnOTS. Pools of (IA)^3
    are merged around the neutral value 1. Everything else (DoRA, full models, mixed pools, ``space="dense"``) is merged
    in full, and factors are extracted from the result.

    `rank`: of the factors at most, or the share of each change's squared norm that they must keep (0.95); None keeps
    everything and is refused where full tensors are merged. `others`: what becomes of changes that no factors hold
    (norms, biases, heads): ``"refuse"`` them by name, ``"drop"`` them with a remark, ``"save"`` them whole.

    Raises ConfigError before a tensor is read where pool, method, rank and space do not fit; NonFiniteError.
    """
    members, way, inputs = check(method, pool, rank, space, others, seed, threads, progress, budget)
    assert isinstance(method, TensorMethod)
    if way == "dense":
        adapter = extract(_merged(method, inputs, budget), members, inputs, rank, others)
    else:
        adapter = _in_factors(method, members, way, inputs, rank, others)
    models = members.models.values()
    return replace(adapter, task_type=task_type(models, members.base.config), reference=reference(models))


def check(
    method: ModelFusionAlgorithm,
    pool: ModelPool,
    rank: Rank = None,
    space: Space = "auto",
    others: Others = "refuse",
    seed: int = 42,
    threads: int = 0,
    progress: Progress | None = None,
    budget: int = DEFAULT_BUDGET,
) -> tuple[Members, Way, Inputs]:
    """How the fusion will be carried out; ConfigError with the way out where it cannot be. Reads headers only."""
    if isinstance(method, FittedMethod):
        raise ConfigError(
            f"save_adapter: method={method.key()} looks at data, and what it learns is not carried over to factors "
            "yet. Save the model (save_model) and cut an adapter out of it (extract_adapter in Python)."
        )
    if not isinstance(method, TensorMethod) or method.per_task:
        raise ConfigError(
            f"save_adapter: method={method.key()} does not make one model tensor by tensor, so its result is no "
            "adapter. Take a merging method such as ties_merging, or save_model."
        )
    base = pool.base
    if base is None:
        raise ConfigError(
            f"save_adapter: an adapter is a change of a base, and the pool {pool.name!r} has none. Add a folder base/ "
            "to the pool (or `_pretrained_` to its models)."
        )
    # What is merged is never rounded to the base's dtype before factors are taken; only they are merged as a rule, so
    # that the budget is checked where full tensors are.
    wide = "F64" if any(info.dtype == "F64" for info in base.infos.values()) else "F32"
    inputs = inputs_of(method, pool, seed, threads, wide, progress, _NO_BUDGET)
    members = survey(inputs.models, base, inputs.structure, inputs.alignment.floating)
    way = _way(members, method, rank, space)
    if way == "dense":
        check_budget(method, replace(inputs, budget=budget))
    elif members.others and others == "refuse":
        raise ConfigError(refusal(members.others))
    if way == "dense" and rank is None:
        raise ConfigError(
            f"save_adapter: {_why_dense(members, space)}, so factors are cut from full tensors, and that needs a rank. "
            "Give one, as in rank=16, or the share of each change to be kept, as in rank=0.95."
        )
    if way == "ia3" and rank is not None:
        raise ConfigError(f"rank={rank}: (IA)^3 vectors have no rank. Leave rank out.")
    if rank is not None:
        check_rank(rank, members, [name for name in inputs.alignment.floating if _cut(members, name)])
    return members, way, replace(inputs, budget=budget)


def check_rank(rank: int | float, members: Members, names: list[str]) -> None:
    """ConfigError for a rank that is none, or larger than any of the tensors can have."""
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ConfigError(f"rank={rank}: expected an integer from 1, or a share above 0 and at most 1, as in 0.95.")
        return
    sides = {name: members.base.info(name).shape for name in names}
    largest = max((min(shape[0], members.base.info(name).numel // max(1, shape[0])) for name, shape in sides.items()),
                  default=0)  # fmt: skip
    if not 1 <= rank <= largest:
        raise ConfigError(f"rank={rank}: expected 1 to {largest}, the smaller side of the largest layer; or a share.")


def _cut(members: Members, name: str) -> bool:
    return bool(members.kinds[name]) and members.factorable(name)


def _way(members: Members, method: TensorMethod, rank: Rank, space: Space) -> Way:
    whole = [name for name in members.of_kind(Dense) if members.factorable(name)]
    low, scaled = members.of_kind(LowRank), members.of_kind(Scale)
    if space == "dense":
        return "dense"
    if low and not scaled and not whole:
        linear = space == "auto" and rank is None and coefficients(method, tuple(members.models)) is not None
        return "sum" if linear else "knots" if space == "knots" else "core"
    if space != "auto":
        raise ConfigError(
            f"adapter_space={space}: {_why_dense(members, space)}. It works on the factors of LoRA adapters alone. "
            "Take adapter_space=auto."
        )
    return "ia3" if scaled and not low and not whole else "dense"


def _why_dense(members: Members, space: Space) -> str:
    """What keeps a pool from being merged in the space of its factors."""
    for model, checkpoint in members.models.items():
        if checkpoint.base is None:
            return f"model {model!r} is no adapter"
    whole = [name for name in members.of_kind(Dense) if members.factorable(name)]
    if whole:
        return f"some adapters (DoRA, modules saved in full) change whole weights ({listed(whole, 2)})"
    if space == "dense":
        return "adapter_space=dense merges full tensors"
    if members.of_kind(Scale):
        return "the pool mixes LoRA and (IA)^3" if members.of_kind(LowRank) else "the pool's adapters are (IA)^3"
    return "no adapter of the pool changes a linear layer"


def _in_factors(
    method: TensorMethod, members: Members, way: Way, inputs: Inputs, rank: Rank, others: Others
) -> Adapter:
    parts: dict[str, Part] = {}
    vectors: dict[str, Scale] = {}
    remarks: list[str] = []
    if way == "ia3":
        vectors, remarks = fuse_vectors(members, method, inputs)
    elif way == "sum":
        parts = concatenate(members, coefficients(method, tuple(members.models)) or {}, inputs)
    else:
        fuse_small = fuse_in_knots if way == "knots" else fuse_in_core
        parts, remarks = fuse_small(members, method, inputs, rank)
        named = {"core": "Core Space (arXiv 2509.17786)", "knots": "the space of KnOTS (arXiv 2410.19735)"}
        remarks = [f"merged in {named[way]}", *remarks]
    saved: dict[str, torch.Tensor] = {}
    more: list[str] = []
    if members.others:
        saved, more = keep_others(_merged(method, inputs.only(members.others)), members, members.others, others)
    names = [*parts, *vectors]
    adapter = Adapter(
        base=members.base,
        targets={name: members.target(name) for name in names},
        factors={name: part.factors for name, part in parts.items()},
        vectors=vectors,
        saved=saved,
        norms={name: (part.kept, part.given) for name, part in parts.items()},
    )
    weights = _weights_remark(method, members)
    return replace(adapter, remarks=(*weights, *remarks, *more, *kept_remark(adapter, rank)))


def _weights_remark(method: TensorMethod, members: Members) -> list[str]:
    """Weights that do not sum to 1 would scale the base, too, in a fusion of full models; an adapter cannot."""
    if method.key() != "weighted_average":
        return []
    whole = sum((coefficients(method, tuple(members.models)) or {}).values())
    if abs(whole - 1) < 1e-9:
        return []
    return [f"the weights sum to {whole:g}; they act on what the adapters change, and the base keeps weight 1"]


def _merged(method: TensorMethod, inputs: Inputs, budget: int | None = None) -> Checkpoint:
    fused = method.fuse(inputs if budget is None else replace(inputs, budget=budget))
    assert isinstance(fused, Merged), "methods with several results were refused"
    return fused.checkpoint
