"""Coefficients that minimise the entropy of the merged model's predictions on unlabelled data."""

from __future__ import annotations

import json
import time
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError, NonFiniteError, unknown
from fusion_bench.fitting import Fitted, Fitting, TaskData
from fusion_bench.method.adaptation_state import Diary
from fusion_bench.method.adaptation_watch import Watch, restored
from fusion_bench.method.base import Inputs, TensorMethod
from fusion_bench.method.coefficients import CoefficientMerge
from fusion_bench.method.fitted import FittedMethod

if TYPE_CHECKING:
    import torch

    from fusion_bench.method.adaptation import Learner


# Part of the key of kept adaptations: to be raised by any change of what a step computes.
_VERSION = 1


@dataclass(frozen=True)
class AdaMerging(FittedMethod):
    """What task-wise and layer-wise AdaMerging share. Subclasses say which tensors share their coefficients."""

    requirement = "test-time adaptation"
    needs_base = True
    use = "adapt"
    gradients = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"steps": 0, "init": 1.0},
        "equal": {"steps": 0, "init": "1/N"},
    }

    steps: int = hyper(1000, "steps of adaptation; 0 merges with the initial coefficients", low=0)
    lr: float = hyper(1e-3, "step size of Adam", above=0.0)
    batch_size: int = hyper(16, "unlabelled examples of each task a step", low=1)
    init: float | str = hyper(0.3, "the initial coefficient, or a report (or JSON file) with learnt coefficients")
    clamp_weights: bool = hyper(False, "keep every coefficient between 0 and 1")
    normalize: Literal["none", "softmax"] = hyper("none", "softmax: the coefficients of the models sum to 1")
    plus_plus: bool = hyper(False, "free task vectors of redundancy and sign conflicts first (the ++ variant)")
    threshold: float = hyper(20.0, "kept share of ++: percent above 1 (20), a fraction up to 1", above=0.0, high=100.0)
    objective: Literal["mean_entropy", "entropy_of_mean"] = hyper(
        "mean_entropy",
        "mean of the examples' entropies, or the entropy of the batch's mean logits (text in the original)",
    )
    vocabulary: Literal["all", "labels"] = hyper(
        "all", "outputs that entropies range over: all, or those of the labels"
    )
    train_mode: bool = hyper(False, "dropout on while adapting, as in the original code for text")

    @abstractmethod
    def tying(self) -> Literal["none", "block", "model"]:
        """Which tensors share coefficients: each its own, those of a block of layers, all."""

    def looks_at(self, available: int) -> int:
        return min(available, self.steps * self.batch_size)

    def preview(self) -> TensorMethod:
        return CoefficientMerge(others=(), kept=self.kept)

    @property
    def kept(self) -> float:
        """The kept share of each task vector."""
        share = self.threshold if self.threshold <= 1 else self.threshold / 100
        return share if self.plus_plus else 1.0

    def fit(self, inputs: Inputs, fitting: Fitting) -> Fitted:
        inputs = replace(inputs, dtype="F64" if _wide(inputs) else "F32")
        names = tuple(inputs.models)
        start, given = self._initial(names, inputs.alignment.floating)
        merging = CoefficientMerge(coefficients=given, others=start, kept=self.kept)
        if self.steps == 0:
            return Fitted(merging, {"coefficients": self._plain(names, given, start), "steps": 0})
        began = time.perf_counter()
        learner, watch, diary = self._prepared(inputs, fitting, merging)
        found = learner.count
        whole = _state(learner, watch)
        with fitting.progress.bar("adapting", self.steps, "steps") as advance:
            advance(learner.count)
            try:
                while learner.count < self.steps:
                    self._step(learner, watch, fitting, names)
                    advance(1)
                    if diary.file is not None:
                        whole = _state(learner, watch)
                        diary.keep(whole, now=learner.count == self.steps)
            except KeyboardInterrupt:
                # The step that was cut off is not part of it.
                diary.keep(whole, now=True)
                raise
        learnt = {name: tuple(learner.coefficients(name)) for name in learner.rows}
        record = {
            "coefficients": self._plain(names, learnt, start),
            "steps": self.steps,
            "steps_found": found,
            "seconds": round(time.perf_counter() - began, 3),
            "range": [min(map(min, learnt.values())), max(map(max, learnt.values()))],
            **watch.record(),
        }
        fitted = CoefficientMerge(coefficients=learnt, others=start, kept=self.kept, trim=learner.merging.trim)
        return Fitted(fitted, record, tuple(watch.remarks()))

    def _step(self, learner: Learner, watch: Watch, fitting: Fitting, names: tuple[str, ...]) -> None:
        """Entropies of all tasks, their gradients summed, one step of the coefficients."""
        for name in names:
            data = fitting.tasks[name]
            batch = data.batch_at(learner.count, self.batch_size, fitting.seed)
            with _drawing(self.train_mode, fitting.seed, learner.count, name):
                logits = _chosen(data.logits(learner.module, batch), data, self.vocabulary)
            loss: Any = self._loss(logits)
            if not loss.isfinite():
                raise NonFiniteError(
                    f"adapting, step {learner.count + 1}: the entropy on the data of {name!r} is NaN or infinite. "
                    "Check the data and the models, or take a smaller method.lr."
                )
            loss.backward()
            watch.note(learner.count, name, float(loss.detach()), logits.argmax(-1).tolist())
        learner.step()

    def _loss(self, logits: torch.Tensor) -> torch.Tensor:
        from fusion_bench.ops.products import entropy

        if self.objective == "entropy_of_mean":
            return entropy(logits.mean(0))
        return entropy(logits).mean()

    def _prepared(self, inputs: Inputs, fitting: Fitting, merging: CoefficientMerge) -> tuple[Learner, Watch, Diary]:
        from fusion_bench.method.adaptation import learner_of
        from fusion_bench.method.engine import MergedCheckpoint

        names = tuple(inputs.models)
        watch = Watch(names, self.steps, self.batch_size)
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "init"}
        content = {
            "version": _VERSION,
            "method": self.key(),
            "fields": told,
            "start": [merging.others, {k: list(v) for k, v in merging.coefficients.items()}],
            "models": None if fitting.identity is None else dict(fitting.identity),
            "order": names,
            "data": {name: fitting.tasks[name].digest for name in names},
            "seed": fitting.seed,
        }
        diary = Diary(content, None if fitting.identity is None else fitting.cache)
        surveyed = MergedCheckpoint(merging, inputs)
        merging = replace(merging, trim=surveyed.prepare())
        learner = learner_of(merging, inputs, fitting.load, self.tying(), self.lr, self.normalize, self.clamp_weights)
        found = diary.read()
        if found is not None:
            learner.restore(found["learner"])
            restored(watch, found["watch"])
        learner.module.train(self.train_mode)
        return learner, watch, diary

    def _initial(self, names: tuple[str, ...], tensors: Sequence[str]) -> tuple[tuple[float, ...], dict[str, Any]]:
        """The coefficients of tensors that are not named, and those that a file gives, by tensor."""
        if not isinstance(self.init, str):
            return self._shares((float(self.init),) * len(names)), {}
        found = _saved(Path(self.init).expanduser())
        order = found["models"]
        absent = [name for name in names if name not in order]
        if absent:
            raise ConfigError(
                f"method.init={self.init}: holds coefficients for {', '.join(order)}, and none for {', '.join(absent)}."
            )
        if self.tying() == "model" and found["by_tensor"]:
            raise ConfigError(
                f"method.init={self.init}: holds coefficients for single tensors, and here all tensors share theirs. "
                "Take method=layer_wise_adamerging."
            )
        strange = [name for name in found["by_tensor"] if name not in tensors]
        if strange:
            raise ConfigError(f"method.init={self.init}: {unknown('tensor', strange[0], tensors[:20])}")
        places = [order.index(name) for name in names]
        rows = {name: self._shares([row[place] for place in places]) for name, row in found["by_tensor"].items()}
        return self._shares([found["others"][place] for place in places]), rows

    def _shares(self, row: Sequence[float]) -> tuple[float, ...]:
        """The coefficients of a row, made to sum to 1 where they are a softmax's. Raises ConfigError."""
        if self.normalize == "none":
            return tuple(row)
        if min(row) <= 0:
            raise ConfigError(f"method.init={self.init}: normalize=softmax begins with coefficients above 0.")
        return tuple(value / sum(row) for value in row)

    def _plain(self, names: tuple[str, ...], rows: Mapping[str, Any], others: tuple[float, ...]) -> dict[str, Any]:
        by_tensor = {name: list(row) for name, row in rows.items()}
        if self.tying() == "model" and by_tensor:
            return {"models": list(names), "others": next(iter(by_tensor.values())), "by_tensor": {}}
        return {"models": list(names), "others": list(others), "by_tensor": by_tensor}


@contextmanager
def _drawing(random: bool, seed: int, step: int, task: str) -> Iterator[None]:
    """Dropout inside draws by seed, step and task alone, and the caller's generators stay as they are."""
    import torch

    if not random:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(f"{seed}/{step}/{task}".encode()))
        yield


def _chosen(logits: torch.Tensor, data: TaskData, vocabulary: str) -> torch.Tensor:
    if vocabulary == "labels" and data.label_outputs is not None:
        return logits[:, list(data.label_outputs)]
    return logits


def _wide(inputs: Inputs) -> bool:
    members = [inputs.reference, *inputs.models.values()]
    return any(member.info(name).dtype == "F64" for member in members for name in inputs.alignment.floating)


def _state(learner: Learner, watch: Watch) -> dict[str, Any]:
    return {"learner": learner.state(), "watch": watch.state()}


def _saved(file: Path) -> dict[str, Any]:
    """Coefficients out of a report of the command line or out of a file that holds them alone. Raises ConfigError."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as fault:
        raise ConfigError(f"method.init={file}: cannot be read as JSON ({fault}). Give a number or a report.") from None
    if isinstance(found, dict) and "run" in found:
        found = found["run"].get("fit", {}).get("coefficients")
    if not _well_formed(found):
        raise ConfigError(
            f"method.init={file}: holds no coefficients. Give the report of a run of AdaMerging, or a file with its "
            "run.fit.coefficients."
        )
    kept: dict[str, Any] = found
    return kept


def _well_formed(found: Any) -> bool:
    """Whether `found` is ``{"models": names, "others": a number each, "by_tensor": {name: a number each}}``."""
    if not isinstance(found, dict) or not isinstance(found.get("models"), list):
        return False
    rows = found.get("by_tensor")
    if not isinstance(rows, dict):
        return False
    return all(
        isinstance(row, list)
        and len(row) == len(found["models"])
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in row)
        for row in [found.get("others"), *rows.values()]
    )
