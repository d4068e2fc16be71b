"""Opening one member of a pool: a path or Hub name, a full model or an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_bench.build import build, hyper
from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.hub import resolve
from fusion_bench.checkpoint.open import is_adapter_folder, is_model_folder, open_checkpoint
from fusion_bench.errors import CheckpointError, ConfigError
from fusion_bench.family.parts import PartName, part_of


@dataclass(frozen=True)
class Member:
    """Where a member lies: a local path or a Hub name, and the revision (branch, tag, commit) of the latter."""

    path: str = hyper("", "folder, file or Hub name")
    revision: str | None = hyper(None, "branch, tag or commit on the Hub")


@dataclass(frozen=True)
class Reading:
    """How the members of a pool are read: which part of full models, and whether heads stay with their tasks."""

    part: PartName = None
    own_heads: bool = False


def member(value: Any, where: str) -> Member:
    """A member as a configuration writes it: a text, or a mapping with `path`. ConfigError names `where`."""
    if isinstance(value, Mapping):
        return build(Member, value, where)
    return build(Member, {"path": value}, where)


def open_member(
    path: str, revision: str | None = None, base: Callable[[], Checkpoint] | None = None, part: PartName = None
) -> Checkpoint:
    """The checkpoint at a local path or Hub name, with the names that its architecture ties declared as aliases.

    An adapter goes on what `base` opens, else on the base it names itself. `part`: of a full model, only that.
    """
    found = resolve(path, revision)
    folder = Path(found.folder)
    if folder.is_dir() and is_adapter_folder(folder) and not is_model_folder(folder):
        under = base() if base is not None else open_member(*adapter_base_of(folder), part=part)
        return open_checkpoint(folder, base=under, commit=found.commit)
    return with_ties(open_checkpoint(folder, commit=found.commit), part)


def adapter_base_of(folder: Path) -> tuple[str, str | None]:
    """The base that an adapter folder names: path or Hub name, revision. CheckpointError where it names none."""
    from fusion_bench.checkpoint.adapter import adapter_base

    reference, revision = adapter_base(folder)
    if not reference:
        raise CheckpointError(
            f"{folder}: the adapter does not name its base (base_model_name_or_path). Put the base into the pool."
        )
    # Two adapters may write one folder differently: ../base, an absolute path.
    local = Path(reference)
    return str(local.resolve() if local.exists() else reference), revision


def with_ties(checkpoint: Checkpoint, part: PartName = None) -> Checkpoint:
    """`checkpoint` (or a part of it) in its family's layout, each tensor that it ties fused and counted once."""
    from fusion_bench.checkpoint.views import Selected, WithAliases
    from fusion_bench.family import family_of

    checkpoint = part_of(checkpoint, part)
    family = family_of(checkpoint.config)
    unread = family.unread & set(checkpoint)
    if unread:
        checkpoint = Selected(checkpoint, [name for name in checkpoint if name not in unread])
    aliases = family.aliases(checkpoint.config).resolve(tuple(checkpoint))
    return WithAliases(checkpoint, aliases) if aliases else checkpoint


def headless(name: str, checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` without its head, which stays at hand; ConfigError where its family knows of none."""
    from fusion_bench.checkpoint.with_head import Headless
    from fusion_bench.family import family_of
    from fusion_bench.family.vision import Headed

    family = family_of(checkpoint.config)
    if not isinstance(family, Headed):
        raise ConfigError(
            f"modelpool.own_heads=true: {name} is of model_type {checkpoint.config.get('model_type')!r}, of which no "
            "head is known. Give own_heads=false."
        )
    return Headless(checkpoint, family.head_names(checkpoint.config, checkpoint.infos))
