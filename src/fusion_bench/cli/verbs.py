"""Sub-verbs for what is no run: lists, descriptions."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from fusion_bench.build import defaults, describe, range_text
from fusion_bench.errors import ConfigError, unknown

_KINDS = ("methods", "modelpools", "taskpools")


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Runs a sub-verb; returns the exit status."""
    if verb == "verify":
        from fusion_bench.cli.verify import run_verify

        return run_verify(arguments)
    if verb == "mergekit":
        from fusion_bench.cli.mergekit import run_mergekit

        return run_mergekit(arguments)
    commands: dict[str, Callable[[Sequence[str]], None]] = {"list": _list, "show": _show}
    if any(a in ("-h", "--help") for a in arguments):
        print(_USAGE[verb])
        return 0
    commands[verb](arguments)
    return 0


_USAGE = {
    "list": "usage: fusion_bench list methods|modelpools|taskpools",
    "show": "usage: fusion_bench show NAME        a method, a model pool or a task pool",
}


def _list(arguments: Sequence[str]) -> None:
    if not arguments:
        raise ConfigError(f"list what? {_USAGE['list']}")
    for kind in arguments:
        plural = kind if kind.endswith("s") else kind + "s"
        if plural not in _KINDS:
            raise ConfigError(unknown("kind", kind, _KINDS))
        rows = _methods() if plural == "methods" else [(name, _first_line(file)) for name, file in _configs(plural)]
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            print(f"{name:<{width}}  {text}".rstrip())


def _methods() -> list[tuple[str, str]]:
    from fusion_bench.method import method_class, method_modules

    rows = []
    for key in method_modules():
        cls = method_class(key)
        rows.append((key, f"{cls.category:<10}  {cls.source}"))
    return rows


def _configs(kind: str) -> list[tuple[str, Path]]:
    from fusion_bench.cli.app import CONFIGS

    return [(file.stem, file) for file in sorted((CONFIGS / kind.removesuffix("s")).glob("*.yaml"))]


def _first_line(file: Path) -> str:
    line = file.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def _show(arguments: Sequence[str]) -> None:
    from fusion_bench.method import method_modules

    if not arguments:
        raise ConfigError(f"show what? {_USAGE['show']}")
    configs = {name: (kind, file) for kind in _KINDS[1:] for name, file in _configs(kind)}
    for name in arguments:
        if name in method_modules():
            print(method_text(name))
        elif name in configs:
            kind, file = configs[name]
            print(f"{kind.removesuffix('s')}={name}\n\n{file.read_text(encoding='utf-8').rstrip()}")
        else:
            raise ConfigError(unknown("name", name, [*method_modules(), *configs]))


def method_text(key: str) -> str:
    """What `show` prints of a method: its formula, its facts, its hyperparameters."""
    from fusion_bench.method import method_class

    cls = method_class(key)
    lines = [f"method={key}", "", *textwrap.dedent(_docstring(cls)).strip().splitlines(), ""]
    lines.append(
        f"category: {cls.category}; requirement: {cls.requirement}; needs a base: {'yes' if cls.needs_base else 'no'}"
    )
    lines.append("")
    for name, kind, default, text in hyperparameters(cls):
        lines.append(f"  method.{name}={default}    {kind}")
        lines.append(f"      {text}")
    if not hyperparameters(cls):
        lines.append("  no hyperparameters")
    return "\n".join(lines)


def _docstring(cls: type) -> str:
    head, _, rest = (cls.__doc__ or "").partition("\n")
    return head.strip() + "\n" + textwrap.dedent(rest)


def hyperparameters(cls: Any) -> list[tuple[str, str, str, str]]:
    """Name, type with range, default, meaning of each field of a method."""
    hints, given = get_type_hints(cls), defaults(cls)
    rows = []
    for field in dataclasses.fields(cls):
        allowed = range_text(field.metadata)
        kind = describe(hints[field.name]) + (f", {allowed}" if allowed else "")
        default = _spelled(given.get(field.name, field.default))
        rows.append((field.name, kind, default, str(field.metadata.get("doc", ""))))
    return rows


def _spelled(value: Any) -> str:
    """A default as it is written on the command line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_spelled(inside)}" for key, inside in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_spelled(inside) for inside in value) + "]"
    return "null" if value is None else str(value)
