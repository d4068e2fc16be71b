"""Stacks of layers in the names of tensors and in a config: which there are, how they are renumbered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_bench.errors import ConfigError, unknown

# Config keys that say how many layers there are: of the only stack, of the encoder beside a decoder, of the decoder.
_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
_ENCODER = ("num_layers", "num_encoder_layers", "encoder_layers", "num_hidden_layers")
_DECODER = ("num_decoder_layers", "decoder_layers")


@dataclass(frozen=True)
class Stack:
    """A run of numbered layers, such as ``model.layers``.

    `suffixes`: what follows the number, by layer; `bound`: those of the first layer that belong to its place rather
    than to the layer, since no other layer has them and it has all that the others have (the relative positions of T5).
    """

    name: str
    suffixes: Mapping[int, frozenset[str]]
    bound: frozenset[str]

    @property
    def count(self) -> int:
        return max(self.suffixes) + 1


def stacks_of(names: Iterable[str]) -> dict[str, Stack]:
    """The stacks that tensor names speak of: all that stands before the first number in a name is the stack's."""
    found: dict[str, dict[int, frozenset[str]]] = {}
    for name in names:
        place = split(name)
        if place is not None:
            stack, layer, suffix = place
            layers = found.setdefault(stack, {})
            layers[layer] = layers.get(layer, frozenset()) | {suffix}
    bound = {stack: _bound(layers) for stack, layers in found.items()}
    # A stack of one layer does not tell what belongs to the place; its neighbours may.
    known = frozenset().union(*bound.values())
    alone = {stack: layers[0] & known for stack, layers in found.items() if set(layers) == {0}}
    return {stack: Stack(stack, found[stack], alone.get(stack, bound[stack])) for stack in sorted(found)}


def _bound(layers: Mapping[int, frozenset[str]]) -> frozenset[str]:
    first = layers.get(0, frozenset())
    others = [suffixes for layer, suffixes in layers.items() if layer != 0]
    shared = frozenset().union(*others)
    return first - shared if others and shared <= first else frozenset()


def split(name: str) -> tuple[str, int, str] | None:
    """``model.layers.3.mlp.weight`` -> (``model.layers``, 3, ``mlp.weight``); None without a number in the name."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts[:-1]) if part.isdigit()), None)
    return None if not at else (".".join(parts[:at]), int(parts[at]), ".".join(parts[at + 1 :]))


def pick_stack(stacks: Mapping[str, Stack], asked: str | None, key: str) -> Stack:
    """The stack called `asked` (its name, or a word in it, such as ``decoder``), or the only one. ConfigError."""
    if not stacks:
        raise ConfigError(f"{key}: the models have no numbered layers.")
    if asked is None:
        if len(stacks) > 1:
            raise ConfigError(
                f"{key}: the models have several stacks of layers. Name one: stack: {' | '.join(stacks)}."
            )
        return next(iter(stacks.values()))
    fitting = [stack for name, stack in stacks.items() if asked == name or asked in name.split(".")]
    if len(fitting) != 1:
        raise ConfigError(unknown("stack", asked, stacks, key))
    return fitting[0]


def relayered(
    config: Mapping[str, Any], stacks: Mapping[str, Stack], kept: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """`config` for a model whose stacks consist of the layers `kept` (stack -> old number of each new layer).

    The number of layers is changed, and what a config lists by layer follows: lists with an entry for each layer are
    dealt out anew, lists of layer numbers are renumbered. ConfigError where a config does not tell its number of
    layers, or tells another than the tensors do. An empty config stays empty.
    """
    new: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    if not config:
        return new
    for name, layers in kept.items():
        stack = stacks[name]
        if list(layers) == list(range(stack.count)):
            continue
        part = _part(new, name)
        keys, encoded = _count_keys(part, name, stacks)
        told = {key: part[key] for key in keys if isinstance(part.get(key), int)}
        if encoded == "decoder" and not told and "num_layers" in part:
            # T5: the decoder is as deep as the encoder unless its own number is given.
            told = {"num_decoder_layers": config["num_layers"]}
        if not told or any(value != stack.count for value in told.values()):
            said = ", ".join(f"{key}={value}" for key, value in told.items()) or f"none of {', '.join(keys)}"
            raise ConfigError(
                f"the config says {said}, and the tensors of {name} make {stack.count} layers: its number of layers "
                "cannot be changed with certainty. Correct config.json."
            )
        if encoded == "encoder" and "num_layers" in told and "num_decoder_layers" not in part:
            part["num_decoder_layers"] = told["num_layers"]
        part.update(dict.fromkeys(told, len(layers)))
        for key, value in part.items():
            if _layered(key, encoded) and isinstance(value, list):
                part[key] = _dealt(value, stack.count, layers)
    return new


def _part(config: dict[str, Any], stack: str) -> dict[str, Any]:
    """The part of a config that speaks of a stack: that of its tower in models of several, else all of it."""
    words = stack.split(".")
    for tower, named in (("vision", "vision"), ("text", "text"), ("text", "language"), ("audio", "audio")):
        part = config.get(f"{tower}_config")
        if isinstance(part, dict) and any(word.startswith(named) for word in words):
            return part
    part = config.get("text_config")
    inner = isinstance(part, dict) and not any(key in config for key in _COUNTS)
    return part if inner and isinstance(part, dict) else config


def _count_keys(part: Mapping[str, Any], stack: str, stacks: Mapping[str, Stack]) -> tuple[tuple[str, ...], str]:
    words = set(stack.split("."))
    both = all(any(word in name.split(".") for name in stacks) for word in ("encoder", "decoder"))
    if both and "decoder" in words:
        return _DECODER, "decoder"
    if both and "encoder" in words:
        return _ENCODER, "encoder"
    return _COUNTS, ""


def _layered(key: str, part: str) -> bool:
    other = {"encoder": "decoder", "decoder": "encoder"}.get(part)
    return ("layer" in key or "block" in key) and (other is None or other not in key)


def _dealt(values: list[Any], count: int, layers: Sequence[int]) -> list[Any]:
    """A list out of a config after renumbering: of an entry for each layer, or of numbers of layers."""
    numbers = all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < count for v in values)
    distinct = len(set(map(str, values))) == len(values)
    if len(values) == count and not (numbers and distinct):
        return [values[layer] for layer in layers]
    if values and numbers and distinct:
        return [new for new, old in enumerate(layers) if old in values]
    return values
