"""Alignment of checkpoints: whether they hold the same tensors, and where they do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
from fusion_bench.errors import AlignmentError

MAX_LINES = 20
_VOCABULARY = ("embed", "shared", "lm_head", "wte", "word_embeddings", "score", "vocab")


@dataclass(frozen=True)
class Alignment:
    """The tensors that all checkpoints share, under the names of the reference (the base, else the first model).

    `infos`: dtype and shape in the reference; `floating` and `integer` split `names`; integer tensors are copied from
    the reference. `dtypes`: for each model that stores floating tensors in other dtypes than the reference, how many.
    """

    reference: str
    names: tuple[str, ...]
    infos: Mapping[str, TensorInfo]
    dtypes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def floating(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if self.infos[name].floating)

    @property
    def integer(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if not self.infos[name].floating)


@dataclass
class _Misfits:
    """Kind -> line -> the models it is said of: what eight models share is said once."""

    lines: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    vocabulary: bool = False

    def add(self, kind: str, line: str, model: str) -> None:
        self.lines.setdefault(kind, {}).setdefault(line, []).append(model)

    def message(self, reference: str) -> str:
        parts = [f"the models do not fit together (compared with {reference}):"]
        for kind, lines in self.lines.items():
            parts.append(f"  {kind} ({len(lines)} {'tensor' if len(lines) == 1 else 'tensors'}):")
            parts += [f"    {line} [{', '.join(models)}]" for line, models in list(lines.items())[:MAX_LINES]]
            if len(lines) > MAX_LINES:
                parts.append(f"    and {len(lines) - MAX_LINES} more")
        if self.vocabulary:
            parts.append(
                "  The vocabularies or label sets differ in size. Fuse models that share one, or resize the embeddings "
                "of some (model.resize_token_embeddings) and save them again."
            )
        parts.append("Leave out the models that do not belong (modelpool.select=[...]).")
        return "\n".join(parts)


def align(base: Checkpoint | None, models: Mapping[str, Checkpoint]) -> Alignment:
    """Compares every model with the reference by headers alone.

    Raises AlignmentError that lists every misfit of every model: missing and extra tensors, shapes, and floating
    against integer values. Differing floating dtypes are no misfit: sums run in float32 or wider.
    """
    if not models:
        raise AlignmentError("there are no models to fuse.")
    reference_name = "base" if base is not None else next(iter(models))
    reference = base if base is not None else models[reference_name]
    others = {name: model for name, model in models.items() if model is not reference}
    names = _names(reference, others)
    infos = {name: reference.info(name) for name in names}
    misfits = _Misfits()
    dtypes: dict[str, dict[str, int]] = {}
    for model_name, model in others.items():
        counts = _compare(model_name, model, reference, infos, misfits)
        if counts:
            dtypes[model_name] = counts
    if misfits.lines:
        raise AlignmentError(misfits.message(reference_name))
    return Alignment(reference_name, names, infos, dtypes)


def _names(reference: Checkpoint, others: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """The reference's stored names, and those of its aliases that some other model stores separately."""
    names = set(reference)
    for model in others.values():
        for alias, target in reference.aliases.items():
            if alias in model and target in model and model.stored(alias) != model.stored(target):
                names.add(alias)
    return tuple(sorted(names))


def _compare(
    model_name: str,
    model: Checkpoint,
    reference: Checkpoint,
    infos: Mapping[str, TensorInfo],
    misfits: _Misfits,
) -> dict[str, int]:
    """Records every misfit of one model; returns how many floating tensors it holds in each other dtype."""
    counts: dict[str, int] = {}
    if not model.aliases and not reference.aliases and model.infos == reference.infos:
        return counts
    for name, expected in infos.items():
        if name not in model:
            misfits.add("missing", name, model_name)
            continue
        found = model.info(name)
        if found.shape != expected.shape:
            line = f"{name}: {list(found.shape)} instead of {list(expected.shape)}"
            misfits.add("of another shape", line, model_name)
            same_rest = found.shape[1:] == expected.shape[1:] and len(found.shape) == len(expected.shape)
            misfits.vocabulary |= same_rest and any(word in name for word in _VOCABULARY)
        if found.floating != expected.floating:
            misfits.add("of another kind of number", f"{name}: {found.dtype} instead of {expected.dtype}", model_name)
        elif found.dtype != expected.dtype:
            counts[found.dtype] = counts.get(found.dtype, 0) + 1
    for name in model:
        if name not in reference:
            misfits.add("extra", name, model_name)
    return counts
