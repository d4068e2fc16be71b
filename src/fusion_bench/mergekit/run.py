"""From a configuration to the merged checkpoint: lazy, checked in full, no tensor read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.align import Alignment, align
from fusion_bench.checkpoint.base import DTYPE_BYTES, Checkpoint, TensorInfo
from fusion_bench.checkpoint.gathered import Gathered, Origin
from fusion_bench.checkpoint.stacks import relayered, stacks_of
from fusion_bench.checkpoint.views import Cast, WithConfig
from fusion_bench.errors import ConfigError
from fusion_bench.family.layers import structure_of
from fusion_bench.mergekit.document import Document, Model, Slice, Source
from fusion_bench.mergekit.layers import Span, always_tied, only_stack, sliced
from fusion_bench.mergekit.methods import KINDS
from fusion_bench.mergekit.parameters import Place, assign, depths
from fusion_bench.method.inputs import Inputs

if TYPE_CHECKING:
    from fusion_bench.method.engine import MergedCheckpoint
    from fusion_bench.progress import Progress


@dataclass(frozen=True)
class Means:
    """What a merge may take: threads, bytes of memory; the seed of draws; where progress is shown."""

    threads: int
    budget: int
    seed: int
    progress: Progress


@dataclass(frozen=True)
class Prepared:
    """A merge that is ready to be read. `models`: the opened models; `merged`: its slices; `checkpoint`: the result."""

    document: Document
    models: Mapping[Model, Checkpoint]
    merged: tuple[MergedCheckpoint, ...]
    checkpoint: Checkpoint

    @property
    def donor(self) -> Checkpoint:
        """The model whose config and tokenizer the result keeps."""
        return self.models[self.document.donor]

    def remarks(self) -> list[str]:
        """What must be said of the merge once it is done: what was written without effect, what the methods found."""
        found = dict.fromkeys(f"{line}, so it has no effect" for line in self.document.unused)
        for merged in self.merged:
            found.update(dict.fromkeys(merged.remarks()))
        return list(found)


def prepare(document: Document, means: Means) -> Prepared:
    """Opens the models (headers alone) and makes the merge. Everything that can be refused is refused here."""
    models = _opened(document)
    donor = models[document.donor]
    if not document.sliced:
        part = document.slices[0]
        whole = _part(document, part, [(source, models[source.model], None) for source in part.sources], means, 0)
        return Prepared(document, models, (whole,), WithConfig(whole, donor.config))
    merged, config = _slices(document, models, means)
    origins = {name: Origin(each, name) for each in merged for name in each}
    aliases = {alias: name for each in merged for alias, name in each.aliases.items()}
    aliases.update({a: n for a, n in always_tied(models).items() if n in origins and a not in origins})
    return Prepared(document, models, merged, Gathered(origins, config, donor, aliases))


def _opened(document: Document) -> dict[Model, Checkpoint]:
    from fusion_bench.modelpool.base import Opened, open_all
    from fusion_bench.modelpool.members import open_member

    opened = Opened({str(model): partial(open_member, model.path, model.revision) for model in document.models})
    open_all(opened)
    return {model: opened[str(model)] for model in document.models}


def _slices(
    document: Document, models: Mapping[Model, Checkpoint], means: Means
) -> tuple[tuple[MergedCheckpoint, ...], dict[str, Any]]:
    """The slices merged, and the config of the result."""
    tied = frozenset(always_tied(models))
    merged: list[MergedCheckpoint] = []
    kept: list[int] = []
    for number, part in enumerate(document.slices):
        layers = part.sources[0].layers
        assert layers is not None
        span = Span(len(kept), layers[1] - layers[0], number == 0, number == len(document.slices) - 1)
        members: list[Member] = []
        for source in part.sources:
            assert source.layers is not None
            view, names = sliced(models[source.model], source.layers, span, tied, source.where)
            members.append((source, view, names))
        merged.append(_part(document, part, members, means, span.offset))
        own = next((source for source in part.sources if source.model == document.donor), part.sources[0])
        assert own.layers is not None
        kept += range(*own.layers)
    donor = models[document.donor]
    stack = only_stack(donor, "base_model")
    try:
        config = relayered(donor.config, stacks_of(donor), {stack.name: kept})
    except IndexError:
        raise ConfigError(
            f"the config of {document.donor} lists its {stack.count} layers one by one, and a slice takes layers "
            "beyond them from another model. Give the deeper model as base_model."
        ) from None
    return tuple(merged), config


Member = tuple[Source, Checkpoint, Mapping[str, str] | None]
"""A source, what of its model is merged, and name in the result -> name in the model where they differ."""


def _part(document: Document, part: Slice, members: Sequence[Member], means: Means, offset: int) -> MergedCheckpoint:
    """One slice over its sources: `offset` layers come before it."""
    from fusion_bench.method.budget import check_budget
    from fusion_bench.method.engine import MergedCheckpoint

    kind = KINDS[document.merge_method]
    labels = document.labels()
    cast = [(source, _cast(view, document.dtype), names) for source, view, names in members]
    has_base = kind.base != "ordinary"
    base = next((view for source, view, _ in cast if has_base and source.model == document.base), None)
    rest = [member for member in cast if member[1] is not base]
    named = {labels[source.model]: view for source, view, _ in rest}
    alignment = align(base, named)
    alignment = replace(alignment, infos=_promoted(alignment, [view for _, view, _ in cast]))
    reference = base if base is not None else rest[0][1]
    structure = structure_of(reference.config, alignment.infos)
    deep = depths(structure.blocks, alignment.floating, offset)
    places = [Place(n, deep[n], tuple((names or {}).get(n, n) for _, _, names in rest)) for n in alignment.floating]
    method = assign(document, part, [source for source, _, _ in rest], base is not None, places)
    inputs = Inputs(
        models=named,
        base=base,
        alignment=alignment,
        seed=means.seed,
        threads=means.threads,
        progress=means.progress,
        dtype=document.out_dtype or document.dtype,
        structure=structure,
        budget=means.budget,
    )
    method.check(tuple(named))
    check_budget(method, inputs)
    return MergedCheckpoint(method, inputs)


def _cast(view: Checkpoint, dtype: str | None) -> Checkpoint:
    """The model in the precision that it is merged from. Slices are computed in float32 or wider: what float32 holds
    exactly needs no cast to it."""
    if dtype is None:
        return view
    stored = {info.dtype for info in view.infos.values() if info.floating}
    exact = {dtype, *(("F16", "BF16") if dtype == "F32" else ())}
    return view if stored <= exact else Cast(view, dtype)


def _promoted(alignment: Alignment, members: Sequence[Checkpoint]) -> dict[str, TensorInfo]:
    """Each tensor in the type that holds what all models store of it."""
    found = {}
    for name, info in alignment.infos.items():
        dtypes = {member.info(name).dtype for member in members} if info.floating else {info.dtype}
        found[name] = TensorInfo(_wider(dtypes), info.shape)
    return found


def _wider(dtypes: set[str]) -> str:
    if len(dtypes) == 1:
        return next(iter(dtypes))
    widest = max(sorted(dtypes), key=lambda dtype: DTYPE_BYTES[dtype])
    return "F32" if DTYPE_BYTES[widest] <= 2 else widest
