"""What becomes of a fusion's result on the command line: saved, evaluated, remarked on, whatever its kind."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.cli.job import place, shard_bytes
from fusion_bench.cli.plan import Plan
from fusion_bench.errors import ConfigError
from fusion_bench.method.base import Fused, Merged, PerTask
from fusion_bench.progress import Progress
from fusion_bench.report import schema

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint


# What a fit learnt, beside the model that it made.
FIT = "fusion_bench_fit.json"


@dataclass(frozen=True)
class Outcome:
    """A fused model, or one for each task: `models` by task, under ``""`` the one for all tasks.

    `found`: all were written by this command before.
    """

    models: Mapping[str, Checkpoint]
    found: bool = False

    @classmethod
    def of(cls, fused: Fused, plan: Plan) -> Outcome:
        if isinstance(fused, Merged):
            return cls({"": fused.checkpoint})
        if isinstance(fused, PerTask):
            return cls(fused.checkpoints)
        raise ConfigError(f"method={plan.method.key()} returns several models, which this command cannot save yet.")

    @classmethod
    def there(cls, plan: Plan) -> Outcome | None:
        """The saved model where a method that looks at data wrote it before: then it need not look again."""
        from fusion_bench.checkpoint.open import open_checkpoint
        from fusion_bench.checkpoint.output import check_writable
        from fusion_bench.modelpool.members import with_ties

        out = place(plan.job.save_model)
        if out is None or not plan.data_facts or plan.job.overwrite:
            return None
        if check_writable(out, plan.job.overwrite, plan.origin()) != "complete":
            return None
        return cls({"": with_ties(open_checkpoint(out))}, True)

    @staticmethod
    def learnt(plan: Plan) -> dict[str, Any]:
        """What the fit of a model that is there found; empty where that is not at hand."""
        out = place(plan.job.save_model)
        try:
            found = json.loads((out / FIT).read_text()) if out is not None else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def any(self) -> Checkpoint:
        """One of the models: all have the same tensors."""
        return next(iter(self.models.values()))

    @property
    def surveyed(self) -> bool:
        """Whether remarks are at hand without another pass over the models."""
        return bool(getattr(self.any, "surveyed", True))

    def remarks(self) -> list[str]:
        """What the report must say of the merge."""
        remarks = getattr(self.any, "remarks", None)
        return remarks() if callable(remarks) else []

    def saved(self, plan: Plan, progress: Progress, learnt: Mapping[str, Any] | None = None) -> Outcome:
        """Writes every model; the result reads what was written. Models of tasks go into folders of their names.

        `learnt`: what a fit found, for a file beside the model.
        """
        from fusion_bench.checkpoint.parts import part_origin, write_parts_manifest

        out = place(plan.job.save_model)
        assert out is not None
        origin = plan.origin()
        if self.found:
            print(f"{out}: complete, written by this command before; nothing to do", file=sys.stderr)
            return self
        if set(self.models) == {""}:
            files = {FIT: json.dumps(learnt, indent=1, default=str)} if learnt else {}
            model, found = _save(plan, self.models[""], out, origin, progress, files)
            return Outcome({"": model}, found)
        written = {
            task: _save(plan, model, out / task, part_origin(origin, task), progress)
            for task, model in self.models.items()
        }
        write_parts_manifest(out, list(written), origin)
        models = {task: model for task, (model, _) in written.items()}
        return Outcome(models, all(found for _, found in written.values()))

    def evaluated(self, plan: Plan, progress: Progress) -> dict[str, Any]:
        """The task pool's part of the report; each model is measured on the tasks it is for."""
        how: dict[str, Any] = {
            "settings": plan.job.settings,
            "tokenizers": plan.tokenizers(),
            "predictions": place(plan.job.save_predictions),
            "heads": plan.heads,
            "progress": progress,
        }
        if set(self.models) == {""}:
            return plan.taskpool.evaluate(self.models[""], **how)
        results: dict[str, Any] = {}
        for task in plan.taskpool.tasks:
            if task in self.models:
                found = plan.taskpool.evaluate(self.models[task], only=[task], **how)
                results[task] = found[task]
            else:
                known = ", ".join(self.models)
                results[task] = {"error": f"the method makes one model a task, and there is none for {task} ({known})"}
        scores = [schema.primary(result) for result in results.values()]
        if results:
            results["average"] = schema.average([score for score in scores if score is not None])
        return results


def _save(
    plan: Plan,
    checkpoint: Checkpoint,
    out: Path,
    origin: Mapping[str, Any],
    progress: Progress,
    files: Mapping[str, str] | None = None,
) -> tuple[Checkpoint, bool]:
    """What was written, read back; and whether it was there already."""
    from fusion_bench.checkpoint.open import open_checkpoint
    from fusion_bench.checkpoint.writer import save
    from fusion_bench.cli.stopping import continuable
    from fusion_bench.modelpool.members import with_ties
    from fusion_bench.report.card import model_card

    with continuable(out):
        saved = save(
            checkpoint,
            out,
            threads=plan.job.settings.workers,
            shard_bytes=shard_bytes(plan.job.shard_size),
            progress=progress,
            origin=origin,
            overwrite=plan.job.overwrite,
            card=model_card(plan),
            extra_files=files or None,
        )
    if saved.how == "complete":
        print(f"{out}: complete, written by this command before; nothing to do", file=sys.stderr)
    else:
        there = f" ({saved.reused / 1e9:.2f} GB of it were there)" if saved.reused else ""
        print(f"saved {out}{there}", file=sys.stderr)
    # What is evaluated is what was written.
    return with_ties(open_checkpoint(out)), saved.how == "complete"
