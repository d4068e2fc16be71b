"""Checkpoints that show another one differently: other names, fewer, another dtype, another config."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import Checkpoint, Delta, Dense, Run, TensorInfo
from fusion_bench.checkpoint.dtypes import parse_dtype, torch_dtype
from fusion_bench.checkpoint.folder import listed
from fusion_bench.errors import CheckpointError, NonFiniteError

if TYPE_CHECKING:
    import torch


class View(Checkpoint):
    """What every view hands through. `sources` says which name of `inner` each stored name shows; see `_names`."""

    def __init__(self, inner: Checkpoint, sources: Mapping[str, str] | None, aliases: Mapping[str, str] | None) -> None:
        self.inner = inner
        self._sources = dict(sorted(sources.items())) if sources is not None else {name: name for name in inner}
        self._aliases = dict(sorted((inner.aliases if aliases is None else aliases).items()))
        self._infos = {name: self._shown(inner.info(source)) for name, source in self._sources.items()}

    def _shown(self, info: TensorInfo) -> TensorInfo:
        return info

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    @property
    def aliases(self) -> Mapping[str, str]:
        return MappingProxyType(self._aliases)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        stored, begin, end = self.span(name, start, stop)
        return self.inner.read(self._sources[stored], begin, end)

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        stored, begin, _ = self.span(name, start, start + out.numel())
        self.inner.read_into(self._sources[stored], begin, out)

    def read_run(self, run: Run, out: torch.Tensor) -> None:
        self.inner.read_run(self._inner_run(run), out)

    def step(self, name: str) -> int:
        return self.inner.step(self._sources[self.stored(name)])

    def expect(self, run: Run) -> None:
        self.inner.expect(self._inner_run(run))

    def _inner_run(self, run: Run) -> Run:
        return tuple((self._sources[self.stored(name)], start, stop) for name, start, stop in run)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.inner.config

    @property
    def folder(self) -> Path | None:
        return self.inner.folder

    @property
    def identity(self) -> Mapping[str, Any]:
        return self.inner.identity

    @property
    def base(self) -> Checkpoint | None:
        return self.inner.base

    def delta(self, name: str) -> Delta:
        return self.inner.delta(self._sources[self.stored(name)])

    def close(self) -> None:
        self.inner.close()


class Renamed(View):
    """`inner` with the names in `mapping` (old -> new) changed; the others stay.

    Its base is not renamed along, so deltas are given only as the tensors themselves.
    """

    def __init__(self, inner: Checkpoint, mapping: Mapping[str, str]) -> None:
        unknown = sorted(name for name in mapping if name not in inner)
        if unknown:
            raise CheckpointError(f"no such tensors to rename: {listed(unknown)}.")
        shown = [mapping.get(name, name) for name in (*inner, *inner.aliases)]
        if len(set(shown)) != len(shown):
            twice = sorted({name for name in shown if shown.count(name) > 1})
            raise CheckpointError(f"renaming gives the same name to several tensors: {listed(twice)}.")
        sources = {mapping.get(name, name): name for name in inner}
        aliases = {mapping.get(alias, alias): mapping.get(name, name) for alias, name in inner.aliases.items()}
        super().__init__(inner, sources, aliases)

    @property
    def base(self) -> Checkpoint | None:
        return None

    def delta(self, name: str) -> Delta:
        return Dense()


class Selected(View):
    """The tensors of `inner` called `names`; where only an alias is named, the tensor is stored under the alias."""

    def __init__(self, inner: Checkpoint, names: Collection[str]) -> None:
        unknown = sorted(name for name in names if name not in inner)
        if unknown:
            raise CheckpointError(f"no such tensors to select: {listed(unknown)}.")
        wanted = sorted(set(names), key=lambda name: (name in inner.aliases, name))
        holders: dict[str, str] = {}
        for name in wanted:
            holders.setdefault(inner.stored(name), name)
        sources = {holder: stored for stored, holder in holders.items()}
        aliases = {name: holders[inner.stored(name)] for name in wanted if name not in sources}
        super().__init__(inner, sources, aliases)


class WithAliases(View):
    """`inner` with names declared tied: `mapping` takes each alias to the name whose tensor it shares.

    An alias that `inner` stores separately is dropped from iteration and reads its target: old T5 files store the same
    embedding three times. Where the target is not stored, the first alias that is becomes the stored name. Aliases of
    which nothing is stored are ignored. A stored alias whose shape differs from its target's is an error.
    """

    def __init__(self, inner: Checkpoint, mapping: Mapping[str, str]) -> None:
        groups: dict[str, list[str]] = {}
        for alias, target in mapping.items():
            groups.setdefault(_end(target, mapping), []).append(alias)
        sources = {name: name for name in inner}
        aliases = dict(inner.aliases)
        faults: list[str] = []
        for target, members in groups.items():
            present = [name for name in (target, *members) if name in inner]
            if not present:
                continue
            # A name that is stored outright is preferred over one that is an alias already.
            holder = next((name for name in present if name in sources), present[0])
            for name in (target, *members):
                if name == holder:
                    continue
                if name in inner and inner.info(name).shape != inner.info(holder).shape:
                    shapes = f"{list(inner.info(name).shape)}, {holder} {list(inner.info(holder).shape)}"
                    faults.append(f"{name} is {shapes}")
                sources.pop(name, None)
                aliases[name] = holder
        if faults:
            raise CheckpointError(f"{inner.folder or 'checkpoint'}: tied tensors disagree: {listed(faults)}.")
        super().__init__(inner, sources, {alias: _end(target, aliases) for alias, target in aliases.items()})


class Cast(View):
    """`inner` with its floating tensors in `dtype` (``bfloat16``, ``BF16``, …); the others keep theirs."""

    def __init__(self, inner: Checkpoint, dtype: str) -> None:
        self._dtype = parse_dtype(dtype)
        super().__init__(inner, None, None)

    def _shown(self, info: TensorInfo) -> TensorInfo:
        return TensorInfo(self._dtype, info.shape) if info.floating else info

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self.inner.read(name, start, stop).to(torch_dtype(self.info(name).dtype))

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        out.copy_(self.read(name, start, start + out.numel()))

    def read_run(self, run: Run, out: torch.Tensor) -> None:
        Checkpoint.read_run(self, run, out)


class Finite(View):
    """`inner`, refusing to hand out NaN or infinity: NonFiniteError names the tensor."""

    def __init__(self, inner: Checkpoint, what: str) -> None:
        self._what = what
        super().__init__(inner, None, None)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        values = self.inner.read(name, start, stop)
        self._refuse(name, values)
        return values

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        self.inner.read_into(name, start, out)
        self._refuse(name, out)

    def read_run(self, run: Run, out: torch.Tensor) -> None:
        Checkpoint.read_run(self, run, out)

    def _refuse(self, name: str, values: torch.Tensor) -> None:
        import torch

        # A finite sum proves finite entries; in float32, since a half-precision sum overflows.
        if not self.info(name).floating or torch.isfinite(values.sum(dtype=torch.float32)):
            return
        bad = int((~torch.isfinite(values.float())).sum())
        if bad:
            raise NonFiniteError(f"{self._what}: tensor {name!r} holds {bad} NaN or infinite entries. Repair the file.")


class WithConfig(View):
    """`inner` with another config.json."""

    def __init__(self, inner: Checkpoint, config: Mapping[str, Any]) -> None:
        self._config = dict(config)
        super().__init__(inner, None, None)

    @property
    def config(self) -> Mapping[str, Any]:
        return MappingProxyType(self._config)


def _end(name: str, mapping: Mapping[str, str]) -> str:
    """Follows alias after alias; a ring of aliases ends at its smallest name."""
    seen = [name]
    while (name := mapping.get(name, name)) not in seen:
        seen.append(name)
    return name if name == seen[-1] else min(seen[seen.index(name) :])
