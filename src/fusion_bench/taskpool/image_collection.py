"""The data of a pool's image tasks: which split of which set, opened once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from fusion_bench.fitting import Protocol, Use
from fusion_bench.taskpool import image_sources
from fusion_bench.taskpool.fitting import split_of
from fusion_bench.taskpool.hub_data import ENVIRONMENT
from fusion_bench.taskpool.image_sets import ImageSet
from fusion_bench.taskpool.image_sources import Source
from fusion_bench.taskpool.image_tasks import ANY_CLASS, ImageTasks


@dataclass(frozen=True)
class Collection:
    """The image sets behind `tasks`. `split`: the one that is reported of tasks that name none; `asked`: to fit on."""

    source: Source
    data_dir: str | None
    tasks: ImageTasks
    split: str
    asked: str | None = None
    opened: dict[tuple[str, str], ImageSet] = field(default_factory=dict, repr=False, compare=False)

    def reported(self, task: str) -> str:
        """The split that a task is scored on."""
        return self.tasks.specs[task].split or self.split

    def fitted(self, task: str, use: Use, protocol: Protocol) -> str:
        """The split of a task that a method looks at: see `split_of`."""
        splits = ["train"]
        if protocol == "disjoint" and self.asked is None and use != "train":
            spec = self.tasks.specs[task]
            if image_sources.has_split(task, spec, self.source, self.data_dir, "validation"):
                splits.append("validation")
        return split_of(use, protocol, self.reported(task), self.asked, splits)

    def images(self, task: str, split: str | None = None) -> ImageSet:
        """The images of a split, of the reported one where none is named."""
        split = split or self.reported(task)
        if (task, split) not in self.opened:
            spec = self.tasks.specs[task]
            self.opened[task, split] = image_sources.open_images(task, spec, self.source, self.data_dir, split)
        return self.opened[task, split]

    def templates(self, task: str) -> tuple[str, ...]:
        """The prompts of a task's zero-shot head."""
        given = self.tasks.specs[task].templates
        if given is not None:
            return given
        return image_sources.generated_templates(task) if self.source == "mini" else ANY_CLASS


def every_task(source: Source, data_dir: str | None, split: str) -> tuple[str, ...]:
    """All tasks of a source; of data sets in the Hub's layout those in the folder, none where no folder is named."""
    if source == "mini":
        return image_sources.generated_tasks()
    folder = data_dir or os.environ.get(ENVIRONMENT)
    return image_sources.tasks_in(folder, split) if folder else ()
