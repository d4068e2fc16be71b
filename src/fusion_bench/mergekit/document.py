"""A checked configuration as a value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fusion_bench.mergekit.values import Value

Parameters = Mapping[str, Value]


@dataclass(frozen=True)
class Model:
    """Where a model lies: a local path, or a Hub name with its revision. One place written in two ways is one model."""

    path: str
    revision: str | None = None
    place: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        local = Path(self.path).expanduser()
        object.__setattr__(self, "place", os.path.realpath(local) if local.exists() else self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and (self.place, self.revision) == (other.place, other.revision)

    def __hash__(self) -> int:
        return hash((self.place, self.revision))

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True)
class Source:
    """A model in a slice: layers ``start:stop`` of it, None for all, with parameters of its own."""

    model: Model
    layers: tuple[int, int] | None
    parameters: Parameters
    where: str


@dataclass(frozen=True)
class Slice:
    """Layers of the result and the sources they are merged from."""

    sources: tuple[Source, ...]
    parameters: Parameters
    where: str


@dataclass(frozen=True)
class Document:
    """A configuration. Under `models` there is one slice, of whole models (`sliced` is False).

    `tokenizer`: the model that tokenizer_source names, None where there is no such key; `unused`: what was written
    and has no effect, in mergekit neither.
    """

    merge_method: str
    base: Model | None
    slices: tuple[Slice, ...]
    sliced: bool
    parameters: Parameters
    dtype: str | None
    out_dtype: str | None
    tokenizer: Model | None
    unused: tuple[str, ...]
    text: str

    @property
    def models(self) -> tuple[Model, ...]:
        """Every model that is read, the base first, each once."""
        found = [*([self.base] if self.base is not None else []), *self._sources()]
        return tuple(dict.fromkeys(found))

    @property
    def donor(self) -> Model:
        """The model whose config and tokenizer the result keeps: the base, else the first listed."""
        return self.base if self.base is not None else next(self._sources())

    def labels(self) -> dict[Model, str]:
        """A short name for each model: the last part of its path, numbered where several share it."""
        found: dict[Model, str] = {}
        for model in self.models:
            name = Path(model.path).name or model.path
            count = sum(label.partition("#")[0] == name for label in found.values())
            found[model] = f"{name}#{count + 1}" if count else name
        return found

    def _sources(self) -> Iterator[Model]:
        return (source.model for part in self.slices for source in part.sources)
