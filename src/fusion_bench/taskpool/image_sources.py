"""Finding the images of a task: in a folder, in the Hub's caches, on the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fusion_bench.errors import DataError, unknown
from fusion_bench.taskpool import hub_data
from fusion_bench.taskpool.hub_data import ENVIRONMENT
from fusion_bench.taskpool.image_sets import Generated, ImageSet, Parquet, has_images
from fusion_bench.taskpool.image_tasks import KNOWN, ImageTask
from fusion_bench.taskpool.origin import Origin

Source = Literal["hub", "mini"]


def open_images(task: str, spec: ImageTask, source: Source, data_dir: str | None, split: str) -> ImageSet:
    """The images of one split; DataError, naming every place looked at, where there are none. Reads labels only."""
    if source == "mini":
        return Generated(task, split)
    files, origin = _find(task, spec, data_dir, split)
    return Parquet(task, files, spec, origin)


def has_split(task: str, spec: ImageTask, source: Source, data_dir: str | None, split: str) -> bool:
    """Whether the task's source has a split of this name."""
    if source == "mini":
        from fusion_bench.zoo.vision.tasks import SIZES

        return split in SIZES
    try:
        _find(task, spec, data_dir, split)
    except DataError:
        return False
    return True


def generated_tasks() -> tuple[str, ...]:
    """The tasks that the package draws itself."""
    from fusion_bench.zoo.vision.tasks import TASKS

    return tuple(TASKS)


def generated_templates(task: str) -> tuple[str, ...]:
    """The prompts of a task that the package draws itself."""
    from fusion_bench.zoo.vision import tasks

    return tuple(tasks.templates(task))


def tasks_in(folder: str, split: str) -> tuple[str, ...]:
    """The sub-folders that hold a split with images; DataError where there are none."""
    place = Path(folder).expanduser()
    names = sorted(child.name for child in place.iterdir() if child.is_dir()) if place.is_dir() else []
    found = [
        name for name in names if (files := hub_data.split_files(place / name, None, split)) and has_images(files[0])
    ]
    if not found:
        raise DataError(
            f"taskpool.data_dir={folder}: no sub-folder holds {split}-*.parquet with the columns image and label. "
            f"{'Sub-folders: ' + ', '.join(names) + '.' if names else 'It is no folder with sub-folders.'}"
        )
    return tuple(found)


def _find(task: str, spec: ImageTask, data_dir: str | None, split: str) -> tuple[tuple[Path, ...], Origin]:
    tried: list[str] = []
    for name in spec.sources:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return _local(task, [folder], spec, split, f"taskpool.tasks.{task}.data")
    if data_dir is not None:
        return _local(task, _below(Path(data_dir), task, spec), spec, split, f"taskpool.data_dir={data_dir}")
    tried.append("taskpool.data_dir: not set")
    variable = os.environ.get(ENVIRONMENT)
    if variable:
        places = _below(Path(variable), task, spec)
        # The variable may name a folder for other data; one that holds the task has to hold the split.
        if any(place.is_dir() for place in places):
            return _local(task, places, spec, split, f"{ENVIRONMENT}={variable}")
        tried.append(f"{ENVIRONMENT}: {variable} has no folder {' or '.join(place.name for place in places)}")
    else:
        tried.append(f"{ENVIRONMENT}: not set")
    patterns = hub_data.hub_patterns(spec.config, split)
    repositories = [name for name in spec.sources if name.count("/") <= 1 and not name.startswith((".", "/", "~"))]
    for name in repositories:
        snapshot = hub_data.in_hub_cache(name, patterns)
        if snapshot is not None and (files := hub_data.split_files(snapshot, spec.config, split)):
            return files, _origin("hub cache", name, split, files, snapshot.name)
        tried.append(f"Hub cache {hub_data.hub_cache()}: no whole {split} split of {name}")
        if files := hub_data.prepared(name, spec.config or "*", split):
            return files, _origin("datasets cache", str(files[0].parent), split, files, files[0].parent.name)
        tried.append(f"datasets cache {hub_data.datasets_cache()}: no {split} split of {name}")
    for name in repositories[:1]:
        fetched = hub_data.on_hub(name, patterns, tried)
        if fetched is not None:
            if files := hub_data.split_files(fetched, spec.config, split):
                return files, _origin("hub cache", name, split, files, fetched.name)
            tried.append(f"the Hub: {name} has no {split}-*.parquet")
    raise DataError(_nowhere(task, spec, split, repositories, tried))


def _below(folder: Path, task: str, spec: ImageTask) -> list[Path]:
    """Where a folder of data sets may hold a task: under the task's name, or that of the repository."""
    names = [task, task.replace("-", "_"), *(part for name in spec.sources for part in (name, name.rpartition("/")[2]))]
    return [folder.expanduser() / name for name in dict.fromkeys(names)]


def _local(
    task: str, places: Sequence[Path], spec: ImageTask, split: str, setting: str
) -> tuple[tuple[Path, ...], Origin]:
    for place in places:
        if files := hub_data.split_files(place, spec.config, split):
            return files, _origin(setting.partition("=")[0], str(files[0].parent), split, files)
    present = [(place, hub_data.splits(place)) for place in places if place.is_dir()]
    hints = [f"{place} holds the splits: {', '.join(found) or 'none'}." for place, found in present]
    looked = ", ".join(str(place) for place in places)
    config = f" of the config {spec.config}" if spec.config else ""
    raise DataError(
        f"{task}: {setting}: no whole set of {split}-*.parquet{config} in {looked}. "
        + (" ".join(hints) or "None of these is a folder.")
    )


def _origin(source: str, path: str, split: str, files: Sequence[Path], commit: str | None = None) -> Origin:
    return Origin(source, path, split, commit=commit, files=hub_data.file_digests(files))


def _nowhere(task: str, spec: ImageTask, split: str, repositories: Sequence[str], tried: Sequence[str]) -> str:
    looked = "\n".join(f"  {place}" for place in tried)
    fetch = f"Fetch it with `hf download {repositories[0]} --repo-type dataset`, or set" if repositories else "Set"
    message = (
        f"{task}: no images of the split {split} found. Looked at:\n{looked}\n{fetch} taskpool.data_dir (or "
        f"{ENVIRONMENT}) to a folder that holds {task}/{spec.config or 'default'}/{split}-00000-of-00001.parquet."
    )
    return message if task in KNOWN or spec.sources else f"{unknown('task', task, KNOWN)}\n{message}"
