"""Values of parameters in a configuration: one for all tensors, a gradient over depth, or chosen by names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusion_bench.errors import ConfigError, unknown

Kind = Literal["number", "count", "truth"]
Scalar = float | bool

_EVERYTHING = ("", "*")
_KINDS: Mapping[Kind, str] = {
    "number": "a finite number",
    "count": "a whole number of at least 0",
    "truth": "true or false",
}


@dataclass(frozen=True)
class Rule:
    """`values` for the names that hold `filter`: one, or several as a gradient from the first layer to the last."""

    filter: str
    values: tuple[Scalar, ...]

    def fits(self, name: str) -> bool:
        return self.filter in _EVERYTHING or self.filter in name

    def at(self, depth: float) -> Scalar:
        place = depth * (len(self.values) - 1)
        low = min(int(place), len(self.values) - 1)
        first, second = self.values[low], self.values[min(low + 1, len(self.values) - 1)]
        if isinstance(first, bool) or isinstance(second, bool):
            return first
        share = place - low
        return (1 - share) * first + share * second


@dataclass(frozen=True)
class Value:
    """Rules of which the first that fits a name counts."""

    rules: tuple[Rule, ...]

    def at(self, name: str, depth: float) -> Scalar | None:
        """The value for tensor `name` at `depth` (0 the first layer of its slice, 1 the last); None where none fits."""
        rule = next((rule for rule in self.rules if rule.fits(name)), None)
        return None if rule is None else rule.at(depth)


def read_value(given: Any, kind: Kind, where: str) -> Value | None:
    """A value as a configuration writes it; None for an empty list, which counts as not given. ConfigError."""
    entries = [given] if isinstance(given, Mapping) else given
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return Value((Rule("", (_scalar(given, kind, where),)),))
    if not entries:
        return None
    chosen = [isinstance(entry, Mapping) for entry in entries]
    if all(chosen):
        return Value(tuple(_rule(entry, kind, f"{where}[{i}]") for i, entry in enumerate(entries)))
    if any(chosen):
        raise ConfigError(
            f"{where}: values and filters in one list. Write a list of numbers (a gradient over the layers) or a list "
            "of {filter: TEXT, value: V}."
        )
    return Value((Rule("", _gradient(entries, kind, where)),))


def _rule(entry: Mapping[str, Any], kind: Kind, where: str) -> Rule:
    strangers = [str(key) for key in entry if key not in ("filter", "value")]
    if strangers:
        raise ConfigError("\n".join(unknown("key", key, ("filter", "value"), where) for key in strangers))
    if "value" not in entry:
        raise ConfigError(f"{where}: value is missing, as in {{filter: mlp, value: 0.5}}.")
    text = entry.get("filter")
    if text is not None and not isinstance(text, (str, int)):
        raise ConfigError(f"{where}.filter={text}: expected a text that occurs in the names of tensors.")
    value = entry["value"]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            raise ConfigError(f"{where}.value: an empty list. Give a number, or a list of numbers as a gradient.")
        return Rule("" if text is None else str(text), _gradient(value, kind, f"{where}.value"))
    return Rule("" if text is None else str(text), (_scalar(value, kind, f"{where}.value"),))


def _gradient(values: Sequence[Any], kind: Kind, where: str) -> tuple[Scalar, ...]:
    return tuple(_scalar(value, kind, f"{where}[{i}]") for i, value in enumerate(values))


def _scalar(given: Any, kind: Kind, where: str) -> Scalar:
    word = given.strip().lower() if isinstance(given, str) else given
    if kind == "truth":
        if isinstance(word, (bool, str, int)) and word in (True, False, "true", "false"):
            return word in (True, "true")
    elif isinstance(word, (int, float, str)) and not isinstance(word, bool):
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if math.isfinite(number) and (kind == "number" or (number >= 0 and number.is_integer())):
            return number
    raise ConfigError(f"{where}={'null' if given is None else given}: expected {_KINDS[kind]}.")
