"""From plain values to a checked, frozen value: one gate for the command line, YAML and Python."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fusion_bench.errors import ConfigError, nearest, unknown

T = TypeVar("T")


def hyper(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field with its documentation and range: `low` and `high` are allowed values, `above` and `below` are not."""
    metadata = {"doc": doc, "low": low, "high": high, "above": above, "below": below}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """`cls(**values)` after checking every name, type and range; all faults come in one ConfigError.

    `where` is the key path that the user knows the values by, such as ``"method"``.
    """
    checked, faults = check(cls, values, where)
    if faults:
        raise ConfigError("\n".join(faults))
    return cls(**checked)


def check(cls: type, values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """The values as `cls` takes them, beside one sentence for each that it does not."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = get_type_hints(cls)
    prefix = f"{where}." if where else ""
    checked: dict[str, Any] = {}
    faults: list[str] = []
    values = {str(key): value for key, value in values.items() if value != "???"}
    for name, value in values.items():
        if name not in fields:
            faults.append(unknown("key", f"{prefix}{name}", [f"{prefix}{field}" for field in fields]))
            continue
        if hasattr(hints[name], "from_plain") and not isinstance(value, hints[name]):
            try:
                checked[name] = hints[name].from_plain(value, f"{prefix}{name}")
            except ConfigError as fault:
                faults.append(str(fault))
            continue
        try:
            checked[name] = convert(value, hints[name])
            _in_range(checked[name], fields[name].metadata)
        except ValueError as fault:
            faults.append(f"{prefix}{name}={_shown(value)}: {fault}.")
    for name, field in fields.items():
        if name not in values and not _has_default(field):
            faults.append(f"{prefix}{name} is missing: {field.metadata.get('doc', 'it has no default')}.")
    return checked, faults


def defaults(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their defaults as plain values, ready for YAML; ``"???"`` where there is none."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if field.default is not dataclasses.MISSING:
            plain[field.name] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            plain[field.name] = _plain(field.default_factory())
        else:
            plain[field.name] = "???"
    return plain


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def describe(hint: Any) -> str:
    """A type as a reader of the command line would name it."""
    if hasattr(hint, "from_plain"):
        return str(getattr(hint, "accepted", "a method: its key, or {name: key, …}"))
    origin = get_origin(hint)
    if origin is Literal:
        return " | ".join("null" if a is None else str(a) for a in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in get_args(hint))
    if origin in (tuple, list, Sequence):
        return f"list of {describe(get_args(hint)[0])}"
    if origin in (dict, Mapping):
        return f"mapping from name to {describe(get_args(hint)[1])}"
    names = {float: "a number", int: "an integer", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def convert(value: Any, hint: Any) -> Any:
    """`value` as the annotated type; ValueError, fit to follow a colon, when it is none. Never guesses across kinds."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin is Literal:
        choices = get_args(hint)
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return choice
            # YAML and the command line read the word as a truth value.
            if isinstance(value, bool) and choice == str(value).lower():
                return choice
        raise ValueError(unknown("value", str(value), [str(c) for c in choices]).rstrip("."))
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, get_args(hint))
    if origin in (tuple, list, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"expected a {describe(hint)}, as in [a,b]")
        items = [convert(item, get_args(hint)[0]) for item in value]
        return tuple(items) if origin is tuple else items
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a {describe(hint)}, as in {{a: 1}}")
        return {str(k): convert(v, get_args(hint)[1]) for k, v in value.items()}
    return _scalar(value, hint)


def _first_that_fits(value: Any, options: tuple[Any, ...]) -> Any:
    # Choices and the value's own type first: 1 stays an integer where integers and texts are both accepted.
    for option in sorted(options, key=lambda o: not _is_literal(o) and type(value) is not o):
        try:
            return convert(value, option)
        except ValueError:
            continue
    choices = [str(choice) for option in options if _is_literal(option) for choice in get_args(option)]
    close = nearest(value, choices) if isinstance(value, str) else []
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError("expected " + " or ".join(describe(option) for option in options) + hint)


def _is_literal(hint: Any) -> bool:
    origin: Any = get_origin(hint)
    return origin is Literal


def _scalar(value: Any, hint: Any) -> Any:
    if hint is type(None):
        if value is None:
            return None
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
            raise ValueError("expected a finite number")
    elif hint is str:
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise ValueError(f"expected {describe(hint)}")


def _in_range(value: Any, metadata: Mapping[str, Any]) -> None:
    low, high, above, below = (metadata.get(bound) for bound in ("low", "high", "above", "below"))
    if (low, high, above, below) == (None, None, None, None):
        return
    leaves = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
    for leaf in leaves:
        if isinstance(leaf, bool) or not isinstance(leaf, (int, float)):
            continue
        if (
            (low is not None and leaf < low)
            or (high is not None and leaf > high)
            or (above is not None and leaf <= above)
            or (below is not None and leaf >= below)
        ):
            raise ValueError(f"out of range; accepted: {range_text(metadata)}")


def range_text(metadata: Mapping[str, Any]) -> str:
    """The allowed range of a field in words; empty when it has none."""
    low, high, above, below = (metadata.get(bound) for bound in ("low", "high", "above", "below"))
    lower = f"greater than {above:g}" if above is not None else f"at least {low:g}" if low is not None else ""
    upper = f"below {below:g}" if below is not None else f"at most {high:g}" if high is not None else ""
    return " and ".join(part for part in (lower, upper) if part)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
