"""The task pool that has images classified."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import CheckpointError, ConfigError, DataError, UserError, unknown
from fusion_bench.family import family_of
from fusion_bench.family.vision import Layouts
from fusion_bench.fitting import Protocol, TaskData, Use
from fusion_bench.progress import Progress
from fusion_bench.taskpool import image_clip, image_heads, image_scores
from fusion_bench.taskpool.answer_cache import AnswerCache, NoCache
from fusion_bench.taskpool.base import TaskPool
from fusion_bench.taskpool.corruptions import canonical_corruption
from fusion_bench.taskpool.examples import shuffled
from fusion_bench.taskpool.fitting import FittingSource
from fusion_bench.taskpool.image_clip import ClipFolder
from fusion_bench.taskpool.image_collection import Collection, every_task
from fusion_bench.taskpool.image_heads import Head
from fusion_bench.taskpool.image_outputs import Outputs, check_size, own_outputs, wearing, zero_shot_outputs
from fusion_bench.taskpool.image_pixels import Damage, Pixels
from fusion_bench.taskpool.image_session import ImageSession, Live, classifier_of, tower_of, with_any_head
from fusion_bench.taskpool.image_sets import ImageSet
from fusion_bench.taskpool.image_sources import Source
from fusion_bench.taskpool.image_tasks import KNOWN, ImageTasks, chosen
from fusion_bench.taskpool.session import essential, write_lines

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.settings import Settings
    from fusion_bench.taskpool.generation import Answers

# Part of the key of cached predictions: to be raised by any change of how predictions are made.
_PREDICTION = 1


@dataclass(frozen=True)
class ImageClassification(TaskPool, FittingSource):
    """Accuracy on image data sets, with zero-shot heads of a pre-trained CLIP or with the models' own heads.

    The eight tasks, their prompts and corruptions are those of the FusionBench paper (arXiv:2406.03280). Data, heads
    and the module are kept between calls of `evaluate`.
    """

    type: Literal["image_classification"] = hyper("image_classification", "the kind of task pool")
    data: Source = hyper("hub", "hub: data sets in the Hub's layout; mini: the tasks that the package generates")
    data_dir: str | None = hyper(
        None, "folder that holds <data set>/<config>/<split>-*.parquet; null: FUSION_BENCH_DATA, else the Hub"
    )
    tasks: ImageTasks = hyper(KNOWN, "names, or {name, data, config, split, classes, templates, image, label}")
    select: tuple[str, ...] | None = hyper(None, "some of the tasks; null: all")
    split: str = hyper("test", "split that is scored")
    fit_split: str | None = hyper(
        None, "split that data-driven methods look at; null: train, and to adapt or choose validation where it is there"
    )
    limit: int | None = hyper(None, "images per task, the first of a fixed shuffle; null: all", low=1)
    head: Literal["zero_shot", "own"] = hyper(
        "zero_shot", "zero_shot: embedded class names; own: the head of each task's own model"
    )
    clip: str | None = hyper(
        None, "folder or Hub name of the pre-trained CLIP whose text tower and image processor serve; null: the base's"
    )
    heads: str | None = hyper(None, "folder with head_<task>.safetensors or .pt instead of a text tower; null: none")
    pickled_modules: bool = hyper(False, "read heads that are whole pickled modules: their tensors, not their code")
    corruption: str | None = hyper(
        None,
        "gaussian_noise, impulse_noise, motion_blur, contrast, jpeg_compression, pixelate or spatter; null: none",
    )
    severity: int = hyper(5, "of the corruption", low=1, high=5)
    pixelate_parity: bool = hyper(False, "pixelate every image to 32 x 32, as the code behind the published scores")
    references: bool = hyper(False, "also evaluate the base, and each expert on its own task")
    cache: bool = hyper(True, "keep heads, small sets of resized images and predictions on disk")
    _session: ImageSession = field(default_factory=ImageSession, init=False, repr=False, compare=False)
    _data: Collection = field(init=False, repr=False, compare=False)
    _used: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        tasks = ImageTasks.from_plain(self.tasks)
        if tasks.everything:
            tasks = ImageTasks.from_plain(every_task(self.data, self.data_dir, self.split))
            tasks.everything = True
        names = chosen(tasks, self.select, "taskpool.select")
        if not tasks and not tasks.everything:
            raise ConfigError("taskpool.tasks=[] leaves no task.")
        tasks = tasks.only(names)
        object.__setattr__(self, "tasks", tasks)
        object.__setattr__(self, "_data", Collection(self.data, self.data_dir, tasks, self.split, self.fit_split))
        object.__setattr__(self, "corruption", canonical_corruption(self.corruption))

    @property
    def name(self) -> str:
        return self.type

    @property
    def metrics(self) -> Mapping[str, str]:
        return dict.fromkeys(self.tasks, "accuracy")

    def check(self, tokenizers: Sequence[Path | str] = ()) -> None:
        faults: list[UserError] = []
        if importlib.util.find_spec("PIL") is None:
            raise ConfigError("images need Pillow. Install it with: pip install 'fusion-bench[vision]'")
        if not self.tasks:
            raise ConfigError(
                "taskpool.tasks=null stands for every data set in taskpool.data_dir, which is not set. Give the folder."
            )
        for task in self.tasks:
            try:
                self._data.images(task)
                if self.heads is not None:
                    image_heads.head_file(self.heads, task)
            except UserError as fault:
                faults.append(fault)
        try:
            self._clip(tokenizers)
        except UserError as fault:
            faults.append(fault)
        if faults:
            kind = DataError if all(isinstance(fault, DataError) for fault in faults) else ConfigError
            raise kind("\n".join(dict.fromkeys(map(str, faults))))

    def check_model(self, config: Mapping[str, Any]) -> None:
        if self.head == "own":
            classifier_of(config)
        else:
            tower_of(config)

    def evaluate(
        self,
        checkpoint: Checkpoint,
        *,
        settings: Settings,
        tokenizers: Sequence[Path | str] = (),
        only: Sequence[str] | None = None,
        predictions: Path | None = None,
        progress: Progress | None = None,
        heads: Mapping[str, Checkpoint] | None = None,
    ) -> dict[str, Any]:
        """As every task pool does. `heads`: those of the tasks' models, for a backbone without one (head=own)."""
        names = chosen(self.tasks, only, "only")
        shown = progress or Progress(enabled=False)
        self.check_model(checkpoint.config)
        family = family_of(checkpoint.config)
        if isinstance(family, Layouts):
            checkpoint = family.arranged(checkpoint)
        bare = self.head == "own" and not classifier_of(checkpoint.config).head_names(
            checkpoint.config, checkpoint.infos
        )
        given = (heads or {}) if bare else None
        source = self._clip(tokenizers)
        # Filled once, since a fused checkpoint may be computed as it is read; tasks put their own heads in the place.
        live = self._session.live(with_any_head(checkpoint, given), settings, shown)
        report: dict[str, Any] = {}
        for task in names:
            try:
                with wearing(live.module, self._own_head(task, given), live.device, live.dtype):
                    report[task] = self._score(task, live, given, source, settings, predictions, shown)
            except Exception as fault:
                # One task's failure, whatever it is, must not cost the hours that the others took.
                report[task] = {"error": f"{type(fault).__name__}: {fault}"}
        return report | _average(report)

    def describe(self) -> dict[str, Any]:
        opened = self._data.opened
        data = {task: found for task in self.tasks if (found := opened.get((task, self._data.reported(task))))}
        return {
            "type": self.type,
            "data": {task: {**found.origin.as_dict(), "classes": len(found.classes)} for task, found in data.items()},
            "limit": self.limit,
            "head": self.head,
            **({"heads": Path(self.heads).name} if self.heads else {}),
            "templates": {task: list(self._data.templates(task)) for task in data} if self._text else None,
            **self._used,
            "corruption": self._corruption_facts(),
        }

    def fitting_facts(self, use: Use, names: Sequence[str], protocol: Protocol) -> dict[str, dict[str, Any]]:
        facts: dict[str, dict[str, Any]] = {}
        faults: list[str] = []
        for name in names:
            try:
                if name not in self.tasks:
                    raise DataError(unknown("task", name, self.tasks, where="taskpool"))
                split = self._data.fitted(name, use, protocol)
                found = self._data.images(name, split)
            except UserError as fault:
                faults.append(str(fault))
                continue
            reported = split == self._data.reported(name)
            # Choices are made by scores, which a limit is for.
            scored = reported or use == "select"
            facts[name] = {
                **found.origin.as_dict(),
                "examples": min(self.limit, len(found)) if scored and self.limit is not None else len(found),
                "reported": reported,
                "corruption": None if use == "train" else self._corruption_facts(),
            }
        if faults:
            raise DataError("\n".join(dict.fromkeys(faults)))
        return facts

    def fitting_data(
        self,
        use: Use,
        names: Sequence[str],
        protocol: Protocol,
        *,
        reference: Checkpoint,
        settings: Settings,
        tokenizers: Sequence[Path | str] = (),
        progress: Progress | None = None,
        heads: Mapping[str, Checkpoint] | None = None,
    ) -> Mapping[str, TaskData]:
        """As every source does. `heads`: the tasks' own, for modules that bear that of another (head=own)."""
        import torch

        from fusion_bench.taskpool.image_fitting import ImageData
        from fusion_bench.taskpool.placement import device_of

        facts = self.fitting_facts(use, names, protocol)
        source = self._clip(tokenizers)
        # What modules are fitted in, whatever they are evaluated in.
        device, dtype = device_of(settings), torch.float64 if settings.dtype == "float64" else torch.float32
        self.check_model(reference.config)
        made: dict[str, TaskData] = {}
        for name in names:
            images = self._data.images(name, facts[name]["split"])
            places = shuffled(name, len(images))[: facts[name]["examples"]]
            pixels = self._pixels(images, places, source, None if use == "train" else self._damage)
            check_size(reference.config, pixels.shape[1:], source.shown)
            outputs = self._outputs(name, reference.config, images, source, device, dtype, heads, worn=False)
            given = {**facts[name], "labels": use != "adapt"}
            made[name] = ImageData(name, pixels, outputs, device, dtype, given, settings.workers)
        return made

    def held_out(self, protocol: Protocol) -> TaskPool:
        splits = {task: self._data.fitted(task, "select", protocol) for task in self.tasks}
        other = replace(self, tasks=self.tasks.on(splits), select=None, references=False)
        object.__setattr__(other, "_session", self._session)
        other._data.opened.update(self._data.opened)
        return other

    @property
    def _text(self) -> bool:
        """Whether heads come out of a text tower."""
        return self.head == "zero_shot" and self.heads is None

    @property
    def _damage(self) -> Damage | None:
        return None if self.corruption is None else Damage(self.corruption, self.severity, self.pixelate_parity)

    def _corruption_facts(self) -> dict[str, Any] | None:
        damage = self._damage
        if damage is None:
            return None
        parity = {"parity": damage.parity} if damage.name == "pixelate" else {}
        return {"name": damage.name, "severity": damage.severity, **parity}

    def _pixels(self, images: ImageSet, places: Sequence[int], source: ClipFolder, damage: Damage | None) -> Pixels:
        return Pixels(images, places, self._session.processor(source.folder), damage, self.cache)

    def _clip(self, tokenizers: Sequence[Path | str]) -> ClipFolder:
        return image_clip.find_clip(self.clip, tokenizers, text=self._text)

    def _own_head(self, task: str, heads: Mapping[str, Checkpoint] | None) -> Checkpoint | None:
        if heads is None:
            return None
        if task not in heads:
            raise CheckpointError(f"{task}: no model of the pool has this name, so the task has no head.")
        return heads[task]

    def _outputs(
        self,
        task: str,
        config: Mapping[str, Any],
        images: ImageSet,
        source: ClipFolder,
        device: torch.device,
        dtype: torch.dtype,
        heads: Mapping[str, Checkpoint] | None,
        worn: bool,
    ) -> Outputs:
        if self.head == "own":
            return own_outputs(config, task, images.classes, self._own_head(task, heads), worn)
        projected = tower_of(config).projected
        made: Head
        if self.heads is not None:
            projection = None if projected else self._session.text_heads(source).projection()
            file = image_heads.head_file(self.heads, task)
            made = image_heads.read_head(file, len(images.classes), projection, self.pickled_modules)
            what = str(file)
        else:
            texts = self._session.text_heads(source)
            made = texts.head(images.classes, self._data.templates(task), projected, self.cache)
            self._used["text_tower"], what = texts.digest, source.shown
        return zero_shot_outputs(config, made.to(device, dtype), what)

    def _score(
        self,
        task: str,
        live: Live,
        heads: Mapping[str, Checkpoint] | None,
        source: ClipFolder,
        settings: Settings,
        predictions: Path | None,
        progress: Progress,
    ) -> dict[str, Any]:
        from fusion_bench.taskpool.image_prediction import predictor

        started = time.perf_counter()
        images = self._data.images(task)
        places = range(len(images)) if self.limit is None else shuffled(task, len(images))[: self.limit]
        pixels = self._pixels(images, places, source, self._damage)
        check_size(live.config, pixels.shape[1:], source.shown)
        outputs = self._outputs(task, live.config, images, source, live.device, live.dtype, heads, worn=True)
        self._used.update(clip=source.shown, image_processor=pixels.processor.digest)
        made = predictor(
            lambda values: outputs.logits(live.module, values), live.device, live.dtype,
            width=int(live.config.get("hidden_size") or 256), batch_size=settings.batch_size, cores=settings.workers,
        )  # fmt: skip
        kept: Answers = NoCache()
        if self.cache:
            content = {
                "prediction": _PREDICTION, "weights": live.digest, "config": essential(live.config),
                "pixels": pixels.digest, "head": outputs.digest, "dtype": settings.dtype, "device": live.device.type,
            }  # fmt: skip
            kept = AnswerCache(content)
        with progress.bar(task, len(pixels), "images") as advance:
            found, cached = made.predict(pixels, kept, advance)
        labels = [images.labels[place] for place in places]
        if predictions is not None:
            entries = zip(places, found, labels, strict=True)
            lines = [{"id": place, "output": output, "target": target} for place, output, target in entries]
            write_lines(predictions / f"{task}.jsonl", lines)
        score = image_scores.accuracy(found, labels)
        return {**asdict(score), "seconds": time.perf_counter() - started, "cached": cached}


def _average(report: Mapping[str, Any]) -> dict[str, Any]:
    """The unweighted mean of the accuracies; where tasks failed, of those that are left, which it names."""
    values = {task: result["accuracy"] for task, result in report.items() if "error" not in result}
    if not values:
        return {"average": None, "average_of": []}
    average = {"average": sum(values.values()) / len(values)}
    return average if len(values) == len(report) else {**average, "average_of": list(values)}
