"""The real GLUE, read from its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fusion_bench.errors import DataError
from fusion_bench.taskpool import hub_data
from fusion_bench.taskpool.hub_data import ENVIRONMENT
from fusion_bench.taskpool.origin import Origin, digests

REPOSITORIES: Final = ("nyu-mll/glue", "glue")


@dataclass(frozen=True, slots=True)
class Split:
    """The files of one split of one task, not read yet."""

    task: str
    files: tuple[Path, ...]
    origin: Origin

    def rows(self) -> list[dict[str, Any]]:
        """Every example as a mapping from column to value, in file order."""
        rows: list[dict[str, Any]] = []
        for file in self.files:
            try:
                rows += _table(file).to_pylist()
            except (OSError, ValueError) as fault:  # pyarrow's errors derive from these
                raise DataError(f"{self.task}: {file} cannot be read: {fault}. Fetch the file again.") from fault
        if not rows:
            raise DataError(f"{self.task}: {', '.join(map(str, self.files))} hold no example.")
        return rows


def split_name(task: str, split: str | None) -> str:
    """The split as GLUE names it; the one whose scores are published where none is asked for."""
    if split is None or (split == "validation" and task == "mnli"):
        return "validation_matched" if task == "mnli" else "validation"
    return split


def find(task: str, data_dir: str | None = None, split: str | None = None) -> Split:
    """The files of a task: in `data_dir`; else in the folder that FUSION_BENCH_DATA names; else in the Hub's cache.

    The first two hold ``glue/<task>/<split>-*.parquet``. A `data_dir` that is given is the only place looked at.
    Raises DataError, naming every place looked at.
    """
    name = split_name(task, split)
    if data_dir is not None:
        return _required(task, Path(data_dir).expanduser(), name, "taskpool.data_dir")
    folder = os.environ.get(ENVIRONMENT)
    # The variable may name a folder for images only; one that holds glue/ has to hold the task.
    if folder and (Path(folder).expanduser() / "glue").is_dir():
        return _required(task, Path(folder).expanduser(), name, ENVIRONMENT)
    variable = _without_glue(folder) if folder else "not set"
    tried = ["taskpool.data_dir: not set", f"{ENVIRONMENT}: {variable}"]
    searches: tuple[Callable[[str, str, list[str]], Split | None], ...] = (_in_hub_cache, _in_datasets_cache, _on_hub)
    for search in searches:
        if found := search(task, name, tried):
            return found
    looked = "\n".join(f"  {place}" for place in tried)
    raise DataError(
        f"{task}: no GLUE data found. Looked at:\n{looked}\n"
        f"Fetch it with `hf download {REPOSITORIES[0]} --repo-type dataset`, "
        f"or set taskpool.data_dir (or {ENVIRONMENT}) to a folder that holds glue/{task}/{name}-00000-of-00001.parquet."
    )


def _required(task: str, folder: Path, split: str, source: str) -> Split:
    place = folder / "glue" / task
    files = sorted(place.glob(f"{split}-*.parquet"))
    if files:
        return Split(task, tuple(files), Origin(source, str(place), split, files=digests(files)))
    if (folder / task).is_dir() and not (folder / "glue").is_dir():
        hint = f"{folder} holds the tasks themselves: give the folder that holds glue/."
    else:
        present = sorted({file.name.split("-")[0] for file in place.glob("*.parquet")})
        hint = f"{place} holds the splits: {', '.join(present)}." if present else f"{place} holds no parquet file."
    raise DataError(f"{task}: {source}={folder} has no {place / f'{split}-*.parquet'}. {hint}")


def _without_glue(folder: str) -> str:
    return f"{folder} has no folder glue" if Path(folder).expanduser().is_dir() else f"{folder} is no folder"


def _in_hub_cache(task: str, split: str, tried: list[str]) -> Split | None:
    tried.append(f"Hub cache {hub_data.hub_cache()}: no {task}/{split}-*.parquet of {' or '.join(REPOSITORIES)}")
    for repository in REPOSITORIES:
        folder = hub_data.in_hub_cache(repository, [f"{task}/{split}-*.parquet"])
        if folder is not None and (found := _snapshot(repository, folder, task, split)):
            return found
    return None


def _on_hub(task: str, split: str, tried: list[str]) -> Split | None:
    folder = hub_data.on_hub(REPOSITORIES[0], [f"{task}/{split}-*.parquet"], tried)
    return None if folder is None else _snapshot(REPOSITORIES[0], folder, task, split)


def _snapshot(repository: str, folder: Path, task: str, split: str) -> Split | None:
    files = sorted((folder / task).glob(f"{split}-*.parquet"))
    if not files:
        return None
    origin = Origin("hub cache", repository, split, commit=folder.name, files=digests(files))
    return Split(task, tuple(files), origin)


def _in_datasets_cache(task: str, split: str, tried: list[str]) -> Split | None:
    for repository in REPOSITORIES:
        if files := hub_data.prepared(repository, task, split):
            folder = files[0].parent
            origin = Origin("datasets cache", str(folder), split, commit=folder.name, files=digests(list(files)))
            return Split(task, files, origin)
    tried.append(f"datasets cache {hub_data.datasets_cache()}: no {task} of {' or '.join(REPOSITORIES)}")
    return None


def _table(file: Path) -> Any:
    if file.suffix == ".arrow":
        import pyarrow as pa

        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_stream(source).read_all()
    from pyarrow import parquet

    return parquet.read_table(file, partitioning=None)
