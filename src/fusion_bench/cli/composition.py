"""Hydra's composition errors, said with the nearest right word first."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_bench.errors import ConfigError, unknown

_GROUPS = ("method", "modelpool", "taskpool")


def explain(error: Exception, arguments: Sequence[str]) -> ConfigError:
    """The user's mistake behind a Hydra or OmegaConf exception; its own words where nothing better is known."""
    text = str(error)
    for part in (_unparsable, _bad_sweep, _missing_choice, _unknown_key):
        message = part(error, text, arguments)
        if message:
            return ConfigError(message)
    return ConfigError(text.strip())


def _unparsable(error: Exception, text: str, arguments: Sequence[str]) -> str | None:
    from hydra.errors import OverrideParseException

    if not isinstance(error, OverrideParseException):
        return None
    given = str(error.override)
    key, equals, value = given.partition("=")
    if not equals:
        keys = [f"{group}=" for group in _GROUPS]
        return unknown("argument", given, keys) + " Arguments are written key=value."
    if value.startswith("[") and value.endswith("]"):
        items = [item if re.fullmatch(r"[\w./:-]+", item) else _quoted(item) for item in value[1:-1].split(",")]
        quoted = f"[{','.join(items)}]"
    else:
        quoted = _quoted(value)
    return (
        f"{given}: the value holds characters that the override grammar reserves, such as ( ) [ ] {{ }} , : = or a "
        f"blank. Quote it for the grammar and for the shell: {shlex.quote(f'{key}={quoted}')}"
    )


def _quoted(value: str) -> str:
    return '"' + value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"') + '"'


def _bad_sweep(error: Exception, text: str, arguments: Sequence[str]) -> str | None:
    match = re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text)
    if match is None:
        return None
    key, value = match.groups()
    if re.fullmatch(r"-?\d+,\d+", value):
        return (
            f"{key}={value}: not a number. Decimals are written with a point: {key}={value.replace(',', '.')}. "
            "(seq and printf follow the locale: run them with LC_NUMERIC=C.)"
        )
    return (
        f"{key}={value}: several values need a sweep: add -m. "
        f"One list is written {shlex.quote(f'{key}=[{value}]')}, one text that holds commas "
        + shlex.quote(f'{key}="{value}"')
        + "."
    )


def _missing_choice(error: Exception, text: str, arguments: Sequence[str]) -> str | None:
    from hydra.errors import MissingConfigException

    if not isinstance(error, MissingConfigException) or error.missing_cfg_file is None:
        return None
    group, _, name = str(error.missing_cfg_file).partition("/")
    if group not in _GROUPS or not error.options:
        return None
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return f"{group}={name}: no such file (looked for {Path(name).expanduser().absolute()})."
    own = "" if group == "method" else f" A file of your own: {group}=./my.yaml."
    return unknown(group, name, error.options) + own


def _unknown_key(error: Exception, text: str, arguments: Sequence[str]) -> str | None:
    match = re.search(r"Could not (?:override|append to|delete from config|) ?'([^']+)'", text)
    if match is None:
        return None
    key = match.group(1)
    given = next((a for a in arguments if a.lstrip("+~").startswith(key)), key)
    for choices in _choices(arguments):
        accepted = _accepted(key, choices)
        if accepted is None or key in accepted:
            continue
        if key.startswith("method."):
            chosen = next((c for c in choices if c.startswith("method=")), None)
            given += f" ({chosen})" if chosen else " (the method is simple_average unless method=... is given)"
            accepted = [name for name in accepted if name != "method.name"]
        if key.startswith("taskpool.") and not any(c.startswith("taskpool=") for c in choices):
            given += " (the task pool is dummy unless taskpool=... is given)"
        return unknown("key", key, accepted, where=given)
    return None


def _choices(arguments: Sequence[str]) -> list[list[str]]:
    """The group choices among the arguments, one list for each combination that a sweep makes of them."""
    groups = [a.lstrip("+~") for a in arguments if a.split("=", 1)[0].lstrip("+~") in _GROUPS and "=" in a]
    split = [[f"{key}={value}" for value in values.split(",")] for key, _, values in (g.partition("=") for g in groups)]
    return [list(combination) for combination in itertools.product(*split)]


def _accepted(key: str, choices: list[str]) -> list[str] | None:
    """The keys beside `key` in the configuration that some group choices compose to; None where they do not."""
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import DictConfig, OmegaConf

    config: Any = _compose(choices)
    GlobalHydra.instance().clear()
    if config is None:
        return None
    parent = key.rpartition(".")[0]
    node = config
    while parent:
        node = OmegaConf.select(config, parent)
        if isinstance(node, DictConfig):
            break
        parent = parent.rpartition(".")[0]
    if not parent:
        node = config
    return [f"{parent}.{name}" if parent else str(name) for name in node if name != "hydra"]


def _compose(overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from fusion_bench.cli.app import CONFIGS

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            return compose("fusion_bench", overrides=overrides)
    except HydraException:
        return None
