"""Low-rank factors of what a full model changed, by SVD of the difference to its base."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from fusion_bench.adapter.adapter import Adapter, Others, Rank, kept_remark
from fusion_bench.adapter.members import Members, reference, survey, task_type
from fusion_bench.adapter.small import Part, each, part, zero
from fusion_bench.checkpoint.align import align
from fusion_bench.checkpoint.base import Checkpoint, Dense
from fusion_bench.checkpoint.folder import listed
from fusion_bench.errors import ConfigError, NonFiniteError
from fusion_bench.method.base import Inputs
from fusion_bench.progress import Progress
from fusion_bench.settings import Settings

if TYPE_CHECKING:
    import torch

# A tensor whose change is smaller than this, relative to its norm, is the base's but for rounding.
_STILL = 1e-6
# Bytes an entry that one extraction takes: the change, its square and the decomposition, in float64.
_WORKSPACE = 6 * 8


def extract_adapter(
    model: Checkpoint,
    base: Checkpoint,
    *,
    rank: int | float,
    others: Others = "refuse",
    threads: int = 0,
    progress: Progress | None = None,
) -> Adapter:
    """A LoRA out of a full model (or an adapter of any kind) beside its base.

    `rank`: of the factors of each linear layer, or the share of the squared norm of its change that they must keep
    (0.95); `others`: what becomes of changed tensors that are no weights of linear layers: ``"refuse"`` them by name,
    ``"drop"`` them with a remark, ``"save"`` them whole in the adapter. Raises ConfigError, AlignmentError.
    """
    from fusion_bench.adapter.fuse import check_rank
    from fusion_bench.family import family_of

    alignment = align(base, {"model": model})
    structure = family_of(base.config).structure(base.config, alignment.infos)
    inputs = Inputs(
        models={"model": model},
        base=base,
        alignment=alignment,
        seed=0,
        threads=Settings(threads=threads).workers,
        progress=progress or Progress(enabled=False),
        structure=structure,
    )
    members = survey({"model": model}, base, structure, alignment.floating)
    check_rank(rank, members, [name for name in alignment.floating if members.factorable(name)])
    adapter = extract(model, members, inputs, rank, others)
    return replace(adapter, task_type=task_type([model], base.config), reference=reference([model]))


def extract(model: Checkpoint, members: Members, inputs: Inputs, rank: Rank, others: Others) -> Adapter:
    r"""$\Delta W = W - W_0$ of each linear layer, cut to `rank` by its SVD; memory: a tensor a thread, in float64, and
    as many threads as the budget lets run.

    `model`: the merged checkpoint, in full precision.
    """
    changed = [name for name in inputs.alignment.floating if members.kinds[name]]
    saved, remarks = keep_others(model, members, [n for n in changed if not members.factorable(n)], others)
    names = [name for name in changed if members.factorable(name)]

    def visit(name: str) -> Part | None:
        from fusion_bench.ops import low_rank

        shape = members.base.info(name).shape
        turned = members.turned(name)
        delta = _difference(model, members.base, name)
        if delta is None:
            return zero(members, name, turned) if name in members.targets else None
        flat = delta.reshape(shape[0], -1)
        up, down, kept, given = low_rank.dominant(flat.t() if turned else flat, rank, 1e-7)
        return part(members, name, up, down, turned, kept, given)

    largest = max((members.base.info(name).numel for name in names), default=1)
    fitting = replace(inputs, threads=max(1, min(inputs.threads, inputs.budget // (_WORKSPACE * largest))))
    parts = dict(zip(names, each(names, visit, fitting, "extracting factors"), strict=True))
    found = {name: part for name, part in parts.items() if part is not None}
    if not found and not saved:
        raise ConfigError(
            "save_adapter: the fused model equals the base, so there is no change to put into an adapter."
        )
    adapter = Adapter(
        base=members.base,
        targets={name: members.target(name) for name in found},
        factors={name: part.factors for name, part in found.items()},
        saved=saved,
        norms={name: (part.kept, part.given) for name, part in found.items()},
    )
    return replace(adapter, remarks=(*remarks, *kept_remark(adapter, rank)))


def keep_others(
    model: Checkpoint, members: Members, names: Iterable[str], others: Others
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors among `names` that `model` changed, whole, with remarks on those left out; ConfigError if refused."""
    changed = {}
    for name in names:
        if Dense in members.kinds[name] and _difference(model, members.base, name) is not None:
            changed[name] = model[name] if others == "save" else None
    if changed and others == "refuse":
        raise ConfigError(refusal(list(changed)))
    if others == "drop" and changed:
        return {}, [
            f"the adapter leaves out what the method changed in {len(changed)} tensors that factors cannot hold: "
            f"{listed(list(changed), 5)}"
        ]
    return {name: tensor for name, tensor in changed.items() if tensor is not None}, []


def refusal(names: list[str]) -> str:
    """The message for changes that no factors can hold."""
    return (
        f"save_adapter: {len(names)} changed tensors are no weights of linear layers, so factors cannot hold them: "
        f"{listed(names, 5)}. Take adapter_others=save to put them whole into the adapter (modules_to_save), or "
        "adapter_others=drop to leave the base's."
    )


def _difference(model: Checkpoint, base: Checkpoint, name: str) -> torch.Tensor | None:
    """What `model` changed of the base's tensor, in float64; None where that is but rounding."""
    before = base[name].double()
    delta = model[name].double().sub_(before)
    size = float(delta.norm())
    if not math.isfinite(size):
        raise NonFiniteError(f"tensor {name!r} of the model, or of its base, holds NaN or infinity. Repair the file.")
    return delta if size > _STILL * float(before.norm()) else None
