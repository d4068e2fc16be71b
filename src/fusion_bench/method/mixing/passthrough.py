"""Stacks layers of several models into one, or hands one model through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_bench.build import hyper
from fusion_bench.checkpoint.stacks import Stack, pick_stack, relayered, split, stacks_of
from fusion_bench.errors import ConfigError, unknown
from fusion_bench.method.base import CheckpointMethod, Inputs

if TYPE_CHECKING:
    from fusion_bench.checkpoint.align import Alignment
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.checkpoint.gathered import Origin

_KEYS = ("model", "layers", "stack", "scale")


@dataclass(frozen=True)
class Passthrough(CheckpointMethod):
    r"""The layers of `slices`, one slice after the other, as one model (a "frankenmerge"); every tensor times `scale`.

    ``slices=[{model: a, layers: [0,24]}, {model: b, layers: [8,32]}]`` takes the layers 0 to 23 of a, then 8 to 31 of b
    (32 and 24 are not included) and numbers them 0 to 47. `layers`: all where left out; `stack`: ``encoder`` or
    ``decoder`` (or the full name, such as ``encoder.block``) where a model has several; stacks without a slice stay
    whole; `scale`: a factor for the slice, or factors by pattern: ``{o_proj: 0, "*.down_proj.weight": 0}``. The model
    ``base`` is the pool's base. Embeddings, norms and head come from `outer`. Without slices the model passes through.

    The result is a lazy view: layers are copies when it is written, so a layer may stand at several places. The config
    follows: number of layers, entries by layer (``layer_types``), lists of layer numbers. What only the first layer
    has and its place needs (relative positions of T5) stays first. Rules by which a model works out the kind of a layer
    from its number (every sixth, all after the third) stay as they are and then mean other layers.
    Errors: unknown models, layers that do not exist, a config that contradicts the tensors.

    Source: Arcee's MergeKit, arXiv 2403.13257.
    """

    category = "mixing"
    source = "Arcee's MergeKit, arXiv 2403.13257"
    symmetric = False
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": {}}

    slices: tuple[Mapping[str, Any], ...] = hyper(
        (), "layers of the result in order: [{model: a, layers: [0,24]}, {model: b, layers: [8,32]}]"
    )
    outer: str | None = hyper(
        None, "the model of everything outside of layers; null: the first slice's, else the first"
    )
    scale: float = hyper(1.0, "the factor on every floating tensor")

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, piece in enumerate(self.slices):
            where = f"method.slices[{number}]"
            strange = [unknown("key", key, _KEYS, where) for key in piece if key not in _KEYS]
            if strange:
                raise ConfigError("\n".join(strange))
            if not isinstance(piece.get("model"), str):
                raise ConfigError(f"{where}.model is missing: give the name of a model of the pool, or base.")
            layers = piece.get("layers")
            whole = isinstance(layers, (list, tuple)) and [type(end) for end in layers] == [int, int]
            if layers is not None and not (whole and 0 <= layers[0] < layers[1]):
                raise ConfigError(
                    f"{where}.layers={layers}: expected the first layer and the one after the last, as in [0,24]."
                )
            for factor in _factors(piece).values():
                if isinstance(factor, bool) or not isinstance(factor, (int, float)):
                    raise ConfigError(f"{where}.scale={piece['scale']}: expected a number, or {{pattern: number}}.")

    def check(self, models: Sequence[str]) -> None:
        known = [*models, "base"]
        faults = [
            unknown("model", str(piece["model"]), known, f"method.slices[{number}].model")
            for number, piece in enumerate(self.slices)
            if piece["model"] not in known
        ]
        if self.outer is not None and self.outer not in known:
            faults.append(unknown("model", self.outer, known, "method.outer"))
        if faults:
            raise ConfigError("\n".join(faults))

    def check_tensors(self, alignment: Alignment) -> None:
        self._plan(stacks_of(alignment.names))

    def transform(self, inputs: Inputs) -> Checkpoint:
        from fusion_bench.checkpoint.gathered import Gathered, Origin

        stacks = stacks_of(inputs.alignment.names)
        plan = self._plan(stacks)
        outer = self._model(inputs, self._outer_name(inputs))
        infos = inputs.alignment.infos
        origins: dict[str, Origin] = {}
        dtypes: dict[str, str] = {}
        for name, info in infos.items():
            place = split(name)
            if place is None or place[0] not in plan:
                origins[name], dtypes[name] = Origin(outer, name, self.scale), info.dtype
        for stack, layers in plan.items():
            for new, (piece, old) in enumerate(layers):
                model = self._model(inputs, str(piece["model"]))
                for suffix in _suffixes(stacks[stack], old, new):
                    # What belongs to the first place comes from the first layer, whichever stands there now.
                    source = f"{stack}.{0 if suffix in stacks[stack].bound else old}.{suffix}"
                    name = f"{stack}.{new}.{suffix}"
                    origins[name] = Origin(model, source, self.scale * _factor(piece, source))
                    dtypes[name] = infos[source].dtype
        aliases = {
            alias: stored
            for alias, stored in inputs.reference.aliases.items()
            if alias not in origins and stored in origins and not any(_within(each, plan) for each in (alias, stored))
        }
        config = relayered(
            outer.config or inputs.reference.config, stacks, {s: [old for _, old in p] for s, p in plan.items()}
        )
        return Gathered(origins, config, outer, aliases, dtypes)

    def _plan(self, stacks: Mapping[str, Stack]) -> dict[str, list[tuple[Mapping[str, Any], int]]]:
        """Stack -> the slice and the old number of each of its new layers. ConfigError."""
        plan: dict[str, list[tuple[Mapping[str, Any], int]]] = {}
        faults = []
        for number, piece in enumerate(self.slices):
            stack = pick_stack(stacks, piece.get("stack"), f"method.slices[{number}]")
            first, last = piece.get("layers") or (0, stack.count)
            if last > stack.count:
                faults.append(
                    f"method.slices[{number}].layers=[{first},{last}]: {stack.name} has {stack.count} layers, "
                    f"so the second number is {stack.count} at most."
                )
            plan.setdefault(stack.name, []).extend((piece, layer) for layer in range(first, last))
        if faults:
            raise ConfigError("\n".join(faults))
        return plan

    def _outer_name(self, inputs: Inputs) -> str:
        if self.outer is not None:
            return self.outer
        return str(self.slices[0]["model"]) if self.slices else next(iter(inputs.models))

    def _model(self, inputs: Inputs, name: str) -> Checkpoint:
        if name in inputs.models:
            return inputs.models[name]
        if inputs.base is None:
            raise ConfigError(f"method={self.key()}: model 'base' is asked for, and the pool has no base.")
        return inputs.base


def _suffixes(stack: Stack, old: int, new: int) -> frozenset[str]:
    """What a layer that comes from place `old` has at its place `new`."""
    held = stack.suffixes.get(old, frozenset()) - stack.bound
    return held | stack.bound if new == 0 else held


def _factors(piece: Mapping[str, Any]) -> dict[str, Any]:
    given = piece.get("scale", 1.0)
    return dict(given) if isinstance(given, Mapping) else {"*": given}


def _factor(piece: Mapping[str, Any], name: str) -> float:
    """The slice's factor for a tensor: of the first pattern, or word in the name, that fits."""
    for pattern, factor in _factors(piece).items():
        if fnmatchcase(name, pattern) if set("*?[") & set(pattern) else pattern in name:
            return float(factor)
    return 1.0


def _within(name: str, stacks: Mapping[str, Any]) -> bool:
    place = split(name)
    return place is not None and place[0] in stacks
