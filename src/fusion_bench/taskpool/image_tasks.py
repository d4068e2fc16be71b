"""The tasks of an image-classification pool: where their data lie, their classes, their prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from fusion_bench.build import build, hyper
from fusion_bench.errors import ConfigError, unknown

# The eight tasks of the FusionBench paper, in its order. What each is stands in class_names/<task>.yaml.
KNOWN: Final = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
# Spellings that papers and published files use beside those that differ in capitals and punctuation alone.
_ALIASES: Final[Mapping[str, str]] = {"cars": "stanford-cars", "grsrb": "gtsrb", "sun": "sun397", "resisc": "resisc45"}
ANY_CLASS: Final = ("a photo of a {c}.",)
_FOLDER: Final = Path(__file__).parent / "class_names"


@dataclass(frozen=True)
class ImageTask:
    """One task. `data`: Hub names, the first that is found counts, or a folder; None: the folder of the task's name."""

    data: tuple[str, ...] | str | None = hyper(None, "name on the Hub (or several), or a folder in the Hub's layout")
    config: str | None = hyper(None, "configuration of the data set; null: its only or default one")
    split: str | None = hyper(None, "split that is scored; null: taskpool.split")
    classes: tuple[str, ...] | None = hyper(None, "class names in label order; null: those the data files carry")
    templates: tuple[str, ...] | None = hyper(
        None, "prompts of the zero-shot head, {c} stands for the class; null: a photo of a {c}."
    )
    image: str = hyper("image", "column of the images")
    label: str = hyper("label", "column of the labels")

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the data may lie."""
        return () if self.data is None else (self.data,) if isinstance(self.data, str) else self.data


class ImageTasks(tuple[str, ...]):
    """The names of tasks in report order; `specs`: what each is; `everything`: all tasks that the data folder holds."""

    accepted = "list of names, or of {name: …} with what differs; or a mapping from name to that"
    specs: Mapping[str, ImageTask]
    everything: bool

    @classmethod
    def from_plain(cls, value: Any, where: str = "taskpool.tasks") -> ImageTasks:
        """From names and mappings with `name` and fields of `ImageTask`, or a mapping from name to fields.

        Null stands for every task of a folder. A known task has its own defaults under any of its spellings.
        ConfigError with every fault.
        """
        if isinstance(value, ImageTasks):
            return value
        given = dict(_entries(value, where))
        specs: dict[str, ImageTask] = {}
        faults: list[str] = []
        for name, fields in given.items():
            try:
                specs[canonical(str(name))] = _task(str(name), fields, f"{where}.{name}")
            except ConfigError as fault:
                faults.append(str(fault))
        if faults:
            raise ConfigError("\n".join(faults))
        made = cls(specs)
        made.specs, made.everything = specs, value is None
        return made

    def only(self, names: Sequence[str]) -> ImageTasks:
        """Some of the tasks."""
        made = ImageTasks(names)
        made.specs, made.everything = {name: self.specs[name] for name in names}, self.everything
        return made

    def on(self, splits: Mapping[str, str]) -> ImageTasks:
        """The tasks on other splits."""
        made = ImageTasks(self)
        made.specs = {name: replace(spec, split=splits[name]) for name, spec in self.specs.items()}
        made.everything = False
        return made


def canonical(name: str) -> str:
    """The name of a known task in whatever spelling it is given, such as ``Cars``, ``GRSRB``; others unchanged."""
    folded = fold(name)
    known = {fold(task): task for task in KNOWN}
    return known.get(folded) or _ALIASES.get(folded, name)


def fold(name: str) -> str:
    """Letters and digits in lower case: what two spellings of a name share."""
    return "".join(c for c in name.lower() if c.isalnum())


def chosen(tasks: Iterable[str], select: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """The tasks that are selected, in their own order; ConfigError for names that are not among them."""
    tasks = tuple(tasks)
    if select is None:
        return tasks
    wanted = [task if task in tasks else canonical(task) for task in select]
    faults = [unknown("task", name, tasks, where=where) for name in wanted if name not in tasks]
    if not wanted:
        faults.append(f"{where}=[] leaves no task. Name one, or null for all.")
    if faults:
        raise ConfigError("\n".join(faults))
    return tuple(task for task in tasks if task in wanted)


def prompts(templates: Sequence[str], name: str) -> list[str]:
    """The texts that stand for a class. Braces inside the name are text."""
    return [template.replace("{c}", name) for template in templates]


def _entries(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name), fields) for name, fields in value.items())
        return
    if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise ConfigError(f"{where}={value}: expected a list of names, or a mapping from name to its fields.")
    for entry in value or ():
        if not isinstance(entry, Mapping):
            yield str(entry), None
        elif "name" in entry:
            yield str(entry["name"]), {key: field for key, field in entry.items() if key != "name"}
        else:
            raise ConfigError(f"{where}: the entry {dict(entry)} has no name.")


def _task(name: str, fields: Any, where: str) -> ImageTask:
    start = published(canonical(name)) if canonical(name) in KNOWN else ImageTask()
    if fields is None:
        return start
    if not isinstance(fields, Mapping):
        raise ConfigError(f"{where}={fields}: expected a mapping, as in {{data: organisation/name, split: test}}.")
    asked = build(ImageTask, fields, where)
    made = replace(start, **{key: getattr(asked, key) for key in fields})
    bare = [template for template in made.templates or () if "{c}" not in template]
    if bare or made.templates == ():
        raise ConfigError(f"{where}.templates={bare}: each needs {{c}} where the class stands, and one is needed.")
    if made.classes is not None and len(made.classes) < 2:
        raise ConfigError(f"{where}.classes={list(made.classes)}: expected two names or more.")
    return made


@cache
def published(task: str) -> ImageTask:
    """One of the eight tasks as the literature has it."""
    import yaml

    values = yaml.safe_load((_FOLDER / f"{task}.yaml").read_text(encoding="utf-8"))
    return build(ImageTask, values, f"class_names/{task}.yaml")
