"""A part of a model as a checkpoint of its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fusion_bench.checkpoint.base import Checkpoint, Delta, Dense
from fusion_bench.checkpoint.views import View


class Part(View):
    """Tensors of `inner` under names of their own (new -> name in `inner`), with another config.

    The folder stays that of `inner`: whatever else lies there, such as the tower for texts, can be found. `facts` are
    added to the identity. Deltas are given only as the tensors themselves: the base of `inner` is a whole model.
    """

    def __init__(
        self,
        inner: Checkpoint,
        names: Mapping[str, str],
        config: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(inner, names, {})
        self._config = dict(inner.config if config is None else config)
        self._facts = dict(facts or {})

    @property
    def config(self) -> Mapping[str, Any]:
        return MappingProxyType(self._config)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.inner.identity, **self._facts}

    @property
    def base(self) -> Checkpoint | None:
        return None

    def delta(self, name: str) -> Delta:
        return Dense()
