"""What is fused: an optional base beside named models, opened when first looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.align import Alignment, align
from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.errors import CheckpointError, ConfigError, FusionError, MissingModelError, unknown

if TYPE_CHECKING:
    import torch

Opener = Callable[[], Checkpoint]

BASE = "_pretrained_"
"""The name of the base among the models of a configuration."""


class Opened(Mapping[str, Checkpoint]):
    """Checkpoints by name, each opened at most once, when first asked for."""

    def __init__(self, openers: Mapping[str, Opener]) -> None:
        self._openers = dict(openers)
        self._opened: dict[str, Checkpoint] = {}
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> Checkpoint:
        with self._lock:
            if name not in self._opened:
                self._opened[name] = self._openers[name]()
            return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._openers)

    def __len__(self) -> int:
        return len(self._openers)


def open_all(*groups: Opened) -> None:
    """Opens every member; one CheckpointError says of all that cannot be opened why, each reason once."""
    faults: dict[str, list[str]] = {}
    missing: dict[str, MissingModelError] = {}
    for group in groups:
        for name in group:
            try:
                group[name]
            except MissingModelError as error:
                missing.setdefault(str(error), error)
            except FusionError as error:
                faults.setdefault(str(error), []).append(name)
    lines = [error if BASE in names else f"{', '.join(names)}: {error}" for error, names in faults.items()]
    if missing:
        absent = list(missing.values())
        names = [name for error in absent for name in error.names]
        commands = [command for error in absent for command in error.commands]
        together = MissingModelError(names, absent[0].where, commands)
        if not lines:
            raise together
        lines.append(str(together))
    if lines:
        raise CheckpointError("\n".join(lines))


class ModelPool:
    """A base (or None) and models by name, in order.

    `tokenizer`: the folder or Hub name whose tokenizer all members share; None: each brings its own.
    """

    def __init__(
        self,
        models: Mapping[str, Checkpoint | Opener],
        base: Checkpoint | Opener | None = None,
        *,
        name: str = "models",
        tokenizer: str | None = None,
        folder: Path | None = None,
    ) -> None:
        if not models and base is None:
            raise ConfigError(f"the pool {name!r} holds no models.")
        self.name, self.tokenizer, self.folder = name, tokenizer, folder
        self.models: Mapping[str, Checkpoint] = Opened({key: _opener(model) for key, model in models.items()})
        self._base = None if base is None else Opened({BASE: _opener(base)})

    @property
    def has_base(self) -> bool:
        """Whether there is a base; opens nothing."""
        return self._base is not None

    @property
    def base(self) -> Checkpoint | None:
        """The pre-trained model; None where the pool has none."""
        return None if self._base is None else self._base[BASE]

    @property
    def reference(self) -> Checkpoint:
        """The base, else the first model."""
        base = self.base
        return base if base is not None else next(iter(self.models.values()))

    @property
    def heads(self) -> Mapping[str, Checkpoint]:
        """The models' own heads by name, where the pool keeps them apart from what is fused; opened when asked for."""
        from fusion_bench.checkpoint.with_head import Heads

        return Heads(self.models)

    @cached_property
    def alignment(self) -> Alignment:
        """How the members fit together; AlignmentError with every misfit where they do not. Reads headers only."""
        assert isinstance(self.models, Opened)
        open_all(*([self._base] if self._base is not None else []), self.models)
        base = self.base
        return align(base, self.models if self.models else {BASE: self.reference})

    def load_model(self, name: str, dtype: torch.dtype | None = None, device: str = "cpu") -> torch.nn.Module:
        """A live module of the member `name` (``"_pretrained_"`` is the base), in float32 unless `dtype` is given."""
        import torch

        from fusion_bench.family import family_of

        if name != BASE and name not in self.models:
            raise ConfigError(unknown("member", name, [*([BASE] if self.has_base else []), *self.models]))
        checkpoint = self.base if name == BASE else self.models[name]
        if checkpoint is None:
            raise ConfigError(f"the pool {self.name!r} has no base.")
        family = family_of(checkpoint.config)
        return family.load(checkpoint, dtype or torch.float32, torch.device(device))

    @property
    def identity(self) -> dict[str, Any]:
        """The identities of the members that were opened."""
        members: dict[str, Any] = {name: self.models[name].identity for name in self.models}
        if self.base is not None:
            members = {BASE: self.base.identity, **members}
        return members


def _opener(model: Checkpoint | Opener) -> Opener:
    return (lambda: model) if isinstance(model, Checkpoint) else model
