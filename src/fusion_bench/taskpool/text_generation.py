"""The task pool that puts GLUE to a model as text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import CheckpointError, ConfigError, DataError, UserError, unknown
from fusion_bench.fitting import Protocol, TaskData, Use
from fusion_bench.progress import Progress
from fusion_bench.taskpool import examples as data
from fusion_bench.taskpool import fitting, glue_data, templates
from fusion_bench.taskpool import metrics as scores
from fusion_bench.taskpool import tokenizer as tokenizer_files
from fusion_bench.taskpool.answer_cache import AnswerCache, NoCache, prompt_digest
from fusion_bench.taskpool.base import TaskPool
from fusion_bench.taskpool.examples import Examples, Source
from fusion_bench.taskpool.fitting import FittingSource
from fusion_bench.taskpool.metrics import Unparseable
from fusion_bench.taskpool.session import LoadedTokenizer, Session, essential, weights_digest, write_lines
from fusion_bench.taskpool.templates import Spelling, Task

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.settings import Settings
    from fusion_bench.taskpool.generation import Answers, Generator

# Part of the key of cached answers: to be raised by any change of how answers are made.
_GENERATION = 1


@dataclass(frozen=True)
class GlueTextGeneration(TaskPool, FittingSource):
    """The eight GLUE tasks answered in words by greedy decoding: exact match, for stsb Spearman's rho.

    The prompts are those of the FusionBench paper (arXiv:2406.03280), Appendix D. Data, token ids and the module are
    kept between calls of `evaluate`.
    """

    type: Literal["glue_text_generation"] = hyper("glue_text_generation", "the kind of task pool")
    data: Source = hyper("glue", "glue: the real data sets; mini_t5: the tasks that the package generates")
    data_dir: str | None = hyper(
        None, "folder that holds glue/<task>/<split>-*.parquet; null: FUSION_BENCH_DATA, else the Hub"
    )
    split: str | None = hyper(
        None, "split that is scored; null: validation (MNLI: validation_matched), of mini_t5: test"
    )
    fit_split: str | None = hyper(
        None, "split that data-driven methods look at; null: train, and to adapt or choose validation where it is there"
    )
    fit_start: Literal["model", "end"] = hyper(
        "model", "what answers begin with while adapting: the model's start token, or the end token (the original code)"
    )
    limit: int | None = hyper(None, "examples per task, the first of a fixed shuffle; null: all", low=1)
    tasks: tuple[Task, ...] = hyper(templates.TASKS, "the tasks, in report order")
    select: tuple[str, ...] | None = hyper(None, "some of the tasks; null: all")
    prompt_spelling: Spelling = hyper(
        "answere", "answere: as in the code behind the published scores; answer: as in the paper"
    )
    stsb_unparseable: Unparseable = hyper(
        "zero", "an stsb answer that is no number: zero counts it as 0.0, whole makes rho 0.0"
    )
    tokenizer: str | None = hyper(
        None, "folder or Hub name; null: the pool's, else the model's folder, else the base's"
    )
    max_length: int = hyper(10, "longest answer in tokens, the start token counted", low=2)
    max_input_length: int = hyper(512, "tokens after which prompts are cut off", low=1)
    references: bool = hyper(False, "also evaluate the base, and each expert on its own task")
    cache: bool = hyper(True, "keep answers on disk, so that an interrupted evaluation continues")
    _session: Session = field(default_factory=Session, init=False, repr=False, compare=False)
    _examples: dict[str, Examples] = field(default_factory=dict, init=False, repr=False, compare=False)
    _fitted_on: dict[tuple[str, str], Examples] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        faults = [
            unknown("task", t, self.tasks, where="taskpool.select") for t in self.select or () if t not in self.tasks
        ]
        if self.select is not None and not self.select:
            faults.append("taskpool.select=[] leaves no task. Name one, or null for all.")
        if not self.tasks:
            faults.append("taskpool.tasks=[] leaves no task.")
        if faults:
            raise ConfigError("\n".join(faults))
        chosen = tuple(dict.fromkeys(t for t in self.tasks if self.select is None or t in self.select))
        object.__setattr__(self, "tasks", chosen)

    @property
    def name(self) -> str:
        return self.type

    @property
    def metrics(self) -> Mapping[str, str]:
        return {task: templates.template(task).metric for task in self.tasks}

    def check(self, tokenizers: Sequence[Path | str] = ()) -> None:
        faults: list[UserError] = []
        for task in self.tasks:
            try:
                self._examples_of(task)
            except UserError as fault:
                faults.append(fault)
        try:
            tokenizer_files.find(self.tokenizer, tokenizers)
        except UserError as fault:
            faults.append(fault)
        if faults:
            kind = DataError if all(isinstance(fault, DataError) for fault in faults) else ConfigError
            raise kind("\n".join(dict.fromkeys(map(str, faults))))

    def check_model(self, config: Mapping[str, Any]) -> None:
        from fusion_bench.family import family_of
        from fusion_bench.family.seq2seq_lm import Seq2SeqLM

        family = family_of(config)
        if not isinstance(family, Seq2SeqLM):
            raise CheckpointError(
                f"model_type {config.get('model_type')!r} does not generate text as these tasks need it: they "
                "take encoder-decoder language models. Use taskpool=dummy to fuse without evaluating."
            )
        family.check_generation(config)

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
        chosen = self._chosen(only)
        shown = progress or Progress(enabled=False)
        generator, tokenizer, kept = self._prepared(checkpoint, settings, tokenizers, shown)
        report: dict[str, Any] = {}
        for task in chosen:
            try:
                report[task] = self._score(task, generator, tokenizer, kept, predictions, shown)
            except Exception as fault:
                # One task's failure, whatever it is, must not cost the hours that the others took.
                report[task] = {"error": f"{type(fault).__name__}: {fault}"}
        return report | self._average(report)

    def describe(self) -> dict[str, Any]:
        held = self._session.held_tokenizer
        return {
            "type": self.type,
            "data": {task: found.origin.as_dict() for task, found in self._examples.items() if task in self.tasks},
            "limit": self.limit,
            "prompt_spelling": self.prompt_spelling,
            "templates": templates.version(),
            "stsb_unparseable": self.stsb_unparseable,
            "tokenizer": None if held is None else {"name": held.source.asked, "sha256": held.digest},
            "generation": {
                "do_sample": False,
                "num_beams": 1,
                "max_length": self.max_length,
                "max_input_length": self.max_input_length,
            },
        }

    def fitting_facts(self, use: Use, names: Sequence[str], protocol: Protocol) -> dict[str, dict[str, Any]]:
        chosen = self._looked_at(use, protocol)
        facts: dict[str, dict[str, Any]] = {}
        faults: list[str] = []
        for name in names:
            try:
                found = self._fitting_examples(name, chosen)
            except UserError as fault:
                faults.append(str(fault))
                continue
            facts[name] = {
                **found.origin.as_dict(),
                "examples": len(found),
                "reported": self._is_reported(name, chosen),
            }
            if use == "select" and self.limit is not None:
                facts[name]["examples"] = min(self.limit, len(found))
            if use == "train":
                facts[name]["teacher_forcing"] = True
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
        from fusion_bench.family.seq2seq_lm import Seq2SeqLM
        from fusion_bench.taskpool.placement import device_of
        from fusion_bench.taskpool.text_fitting import TextData, Tokens

        facts = self.fitting_facts(use, names, protocol)
        source = tokenizer_files.find(self.tokenizer, tokenizers)
        tokenizer = self._session.tokenizer(source, self.max_input_length)
        start, end, pad = Seq2SeqLM().special_tokens(reference.config)
        tokens = Tokens(start if self.fit_start == "model" else end, end, pad)
        device = device_of(settings)
        return {
            name: TextData(
                self._fitting_examples(name, facts[name]["split"]),
                tokenizer,
                tokens,
                device,
                facts[name],
                use != "adapt",
            )
            for name in names
        }

    def held_out(self, protocol: Protocol) -> TaskPool:
        chosen = self._looked_at("select", protocol)
        return replace(self, split=chosen, references=False)

    def _looked_at(self, use: Use, protocol: Protocol) -> str:
        """The split that `fitting_facts` speaks of. MNLI calls its validation split by another name."""
        splits = ("train", "validation") if self._generated else ("train",)
        chosen = fitting.split_of(use, protocol, self._reported, self.fit_split, splits)
        if protocol == "disjoint" and any(self._is_reported(task, chosen) for task in self.tasks):
            raise ConfigError(fitting.refusal(chosen))
        return chosen

    def _is_reported(self, task: str, split: str) -> bool:
        if self._generated:
            return split == self._reported
        return glue_data.split_name(task, split) == glue_data.split_name(task, self._reported)

    @property
    def _generated(self) -> bool:
        return self.data == "mini_t5"

    @property
    def _reported(self) -> str:
        return self.split or ("test" if self._generated else "validation")

    def _fitting_examples(self, task: str, split: str) -> Examples:
        if task not in self.tasks:
            raise DataError(unknown("task", task, self.tasks, where="taskpool"))
        if (task, split) not in self._fitted_on:
            # A limit beyond all sizes asks for the whole, shuffled.
            self._fitted_on[task, split] = data.read(
                task, self.data, data_dir=self.data_dir, split=split, limit=1 << 60, spelling=self.prompt_spelling
            )
        return self._fitted_on[task, split]

    def _chosen(self, only: Sequence[str] | None) -> tuple[str, ...]:
        strange = [task for task in only or () if task not in self.tasks]
        if strange:
            raise ConfigError(unknown("task", strange[0], self.tasks, where="only"))
        return tuple(task for task in self.tasks if only is None or task in only)

    def _examples_of(self, task: str) -> Examples:
        if task not in self._examples:
            self._examples[task] = data.read(
                task,
                self.data,
                data_dir=self.data_dir,
                split=self.split,
                limit=self.limit,
                spelling=self.prompt_spelling,
            )
        return self._examples[task]

    def _prepared(
        self, checkpoint: Checkpoint, settings: Settings, tokenizers: Sequence[Path | str], progress: Progress
    ) -> tuple[Generator, LoadedTokenizer, Answers]:
        from fusion_bench.family.greedy import special_tokens
        from fusion_bench.taskpool.batching import BatchSize
        from fusion_bench.taskpool.generation import Generator
        from fusion_bench.taskpool.placement import device_of, dtype_of, kind_of, parallelism

        source = tokenizer_files.find(self.tokenizer, tokenizers)
        device, dtype = device_of(settings), dtype_of(settings)
        tokenizer = self._session.tokenizer(source, self.max_input_length)
        family, module = self._session.module(checkpoint, device, dtype, settings.workers, progress)
        kind = kind_of(module, device)
        workers, threads = parallelism(kind, settings.workers)
        generator = Generator(
            family=family,
            module=module,
            device=device,
            encode=tokenizer.encode,
            decode=tokenizer.decode,
            pad=special_tokens(module)[2],
            max_length=self.max_length,
            size=BatchSize.choose(settings.batch_size, kind),
            workers=workers,
            threads=threads,
        )
        if not self.cache:
            return generator, tokenizer, NoCache()
        content = {
            "generation": _GENERATION,
            "weights": weights_digest(module),
            "config": essential(checkpoint.config),
            "tokenizer": tokenizer.digest,
            "max_length": self.max_length,
            "max_input_length": self.max_input_length,
            "dtype": settings.dtype,
            "device": device.type,
        }
        return generator, tokenizer, AnswerCache(content)

    def _score(
        self,
        task: str,
        generator: Generator,
        tokenizer: LoadedTokenizer,
        kept: Answers,
        predictions: Path | None,
        progress: Progress,
    ) -> dict[str, Any]:
        started = time.perf_counter()
        found = self._examples_of(task)
        prompts = [text.prompt for text in found.texts]
        with progress.bar(task, len(prompts), "examples") as advance:
            outputs, cached = generator.answer(prompts, kept, advance)
        targets = [tokenizer.through(text.target) for text in found.texts]
        if predictions is not None:
            lines = [
                {"id": i, "prompt_digest": prompt_digest(prompt), "output": output, "target": target}
                for i, prompt, output, target in zip(found.ids, prompts, outputs, targets, strict=True)
            ]
            write_lines(predictions / f"{task}.jsonl", lines)
        words = templates.template(task).targets
        score: scores.ExactMatch | scores.RankCorrelation
        if words is None:
            # The number is read from the text itself: a tokenizer that changes it must not change the gold standard.
            gold = [text.target for text in found.texts]
            score = scores.rank_correlation(outputs, gold, self.stsb_unparseable)
        else:
            score = scores.exact_match(outputs, targets, [tokenizer.through(word) for word in words])
        return {**asdict(score), "seconds": time.perf_counter() - started, "cached": cached}

    def _average(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """The unweighted mean of the primary metrics; where tasks failed, of those that are left, which it names."""
        values = {task: report[task][self.metrics[task]] for task in report if "error" not in report[task]}
        if not values:
            return {"average": None, "average_of": []}
        average = {"average": sum(values.values()) / len(values)}
        return average if len(values) == len(report) else {**average, "average_of": list(values)}
