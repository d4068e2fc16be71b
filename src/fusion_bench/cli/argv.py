"""Old spellings of the command line in, today's out. Nothing else knows old spellings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fusion_bench.errors import ConfigError, unknown

VERBS = ("list", "mergekit", "show", "verify")

# Keys and folders that earlier releases of the benchmark used, and their documentation still shows.
_OLD_KEYS = {"report_save_path": "save_report", "merged_model_save_path": "save_model"}
_OLD_FOLDERS = ("Seq2SeqLMPool/", "PeftModelForSeq2SeqLMPool/", "AutoModelForSeq2SeqLMPool/")
_OLD_PATH = re.compile(r"^(\+{0,2}modelpool\.models\.[^=]+)\.pretrained_model_name_or_path=")
_INDEX = re.compile(r"^(\+{0,2}modelpool\.models)\.([^.=]+)([^=]*)(=.*)?$", re.DOTALL)

# A method inside a method: its hyperparameters are known once it is chosen.
_INNER = re.compile(r"^\+{0,2}method((?:\.inner)+)(\.(?!inner$)\w.*)?$")

_GROUPS = ("method", "modelpool", "taskpool")
_VALUED = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--info", "-i", "--experimental-rerun",
)  # fmt: skip

Members = Callable[[str], Sequence[str] | None]


def split_verb(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The sub-verb and its arguments, or None where the arguments are a run: options and ``key=value``."""
    if not arguments or arguments[0].startswith("-") or "=" in arguments[0]:
        return None, list(arguments)
    word = arguments[0]
    if word.startswith(("~", "+")):
        return None, list(arguments)
    if word not in VERBS:
        raise ConfigError(
            unknown("command", word, VERBS) + " A run takes key=value arguments, as in method=simple_average."
        )
    return word, list(arguments[1:])


def translate(arguments: Sequence[str], members: Members) -> list[str]:
    """The arguments in today's spelling, order kept.

    `members` tells the model names of a pool in order when its configuration is a mapping, None when it is a list (or
    unknown): ``modelpool.models.0.path=x`` becomes ``modelpool.models.<first>.path=x`` for a mapping, and a name
    becomes an index for a list, which it marks by entries ``<index>:<name>``.
    """
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in _GROUPS and value in ("", "null"):
            raise ConfigError(f"{argument}: choose one; `fusion_bench list {key}s` shows them.")
    renamed = [_renamed(argument) for argument in _flags_first(arguments)]
    pools = [a.split("=", 1)[1] for a in renamed if a.startswith("modelpool=")]
    names = members(pools[-1]) if pools and "," not in pools[-1] else members("") if not pools else None
    return _inner_first(_under_swept([_placed(argument, names) for argument in renamed]))


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """Options before overrides, each with its value: Hydra's parser takes them in this order alone."""
    flags: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        if word in _VALUED:
            flags += [value for value in [next(words, None)] if value is not None]
    return flags + overrides


def _renamed(argument: str) -> str:
    key, equals, value = argument.partition("=")
    inner = _INNER.match(key)
    if equals and inner:
        if inner.group(2):
            return f"++{key.lstrip('+')}={value}"
        if re.fullmatch(r"[\w,]+", value):
            value = ",".join(f"{{name:{word}}}" for word in value.split(","))
        return f"++{key.lstrip('+')}={value}"
    if equals and key.lstrip("+") in _OLD_KEYS:
        return f"{_OLD_KEYS[key.lstrip('+')]}={value}"
    if equals and key == "modelpool":
        for folder in _OLD_FOLDERS:
            value = value.replace(folder, "")
        return f"{key}={value}"
    return _OLD_PATH.sub(r"\1.path=", argument)


def _under_swept(arguments: Sequence[str]) -> list[str]:
    """Keys below a group whose choice is swept are set whatever the default choice knows; builders check them later."""
    swept = [group for group in _GROUPS if any(re.match(rf"{group}=[^\[{{'\"]*,", a) for a in arguments)]
    return [f"++{a}" if any(a.startswith(f"{group}.") for group in swept) else a for a in arguments]


def _inner_first(arguments: Sequence[str]) -> list[str]:
    """A method inside a method replaces the default one with all its hyperparameters, before its own are set."""
    chosen = [a for a in arguments if (match := _INNER.match(a.partition("=")[0])) and not match.group(2)]
    chosen.sort(key=lambda argument: argument.partition("=")[0].count("."))
    rest = [argument for argument in arguments if argument not in chosen]
    at = next((i for i, argument in enumerate(rest) if _INNER.match(argument.partition("=")[0])), len(rest))
    outer = [a for a in chosen if a.partition("=")[0].endswith("method.inner")]
    return [*rest[:at], *(["~method.inner"] if outer else []), *chosen, *rest[at:]]


def _placed(argument: str, names: Sequence[str] | None) -> str:
    match = _INDEX.match(argument)
    if names is None or match is None:
        return argument
    head, member, tail, value = match.group(1), match.group(2), match.group(3), match.group(4) or ""
    listed = bool(names) and names[0].startswith("0:")
    plain = [name.split(":", 1)[1] for name in names] if listed else list(names)
    if member.isdigit() and not listed:
        if int(member) >= len(plain):
            raise ConfigError(
                f"{argument}: the pool has {len(plain)} models, so the last index is {len(plain) - 1}. "
                f"They are, in order: {', '.join(plain)}."
            )
        return f"{head}.{plain[int(member)]}{tail}{value}"
    if listed and member in plain:
        return f"{head}.{plain.index(member)}{tail}{value}"
    return argument
