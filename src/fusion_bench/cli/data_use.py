"""Data that a method looks at: checked before work, declared, opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import ConfigError, FusionError
from fusion_bench.fitting import Fitted
from fusion_bench.method.fitted import FittedMethod
from fusion_bench.report import schema
from fusion_bench.taskpool.fitting import FittingSource

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.cli.plan import Plan
    from fusion_bench.progress import Progress

_SERVES = {"train": "statistics of", "adapt": "adapts on", "select": "chooses by"}


def facts_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """What the method would look at, by task; nothing for a method that looks at no data. ConfigError, DataError."""
    method, pool = plan.method, plan.pool
    if not isinstance(method, FittedMethod):
        return {}
    if not isinstance(plan.taskpool, FittingSource):
        raise ConfigError(
            f"method={method.key()} looks at data, and taskpool={plan.taskpool.name} has none. Choose one that has "
            "data for the models, such as taskpool=mini-t5_glue_text_generation for the embedded pool."
        )
    strangers = [name for name in pool.models if name not in plan.taskpool.tasks]
    if strangers:
        raise ConfigError(
            f"method={method.key()} needs data for each model, and the taskpool has no task for "
            f"{', '.join(strangers)} (its tasks: {', '.join(plan.taskpool.tasks)}). Choose models with "
            "modelpool.select, or name models as their tasks are named."
        )
    return plan.taskpool.fitting_facts(method.use, list(pool.models), plan.job.protocol)


def data_values(plan: Plan) -> dict[str, Any]:
    """What decides a fit beside method and inputs; empty for methods that look at no data."""
    from fusion_bench.checkpoint.digests import digest
    from fusion_bench.cli.job import canonical

    if not plan.data_facts:
        return {}
    method = plan.method
    use = method.use if isinstance(method, FittedMethod) else "train"
    about = {"facts": plan.data_facts, "taskpool": _looked_at(plan.job.taskpool, use), "device": plan.device()}
    return {"data": digest(canonical(about).encode()).hex(), "protocol": plan.job.protocol}


def files_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of the files and folders that hyperparameters name, by key; empty where they name none."""
    from fusion_bench.checkpoint.digests import digest

    found: dict[str, str] = {}
    for key, value in values.items():
        place = Path(value).expanduser() if isinstance(value, str) and value else None
        if place is not None and place.is_file():
            found[key] = digest(place.read_bytes()).hex()
        elif place is not None and key == "path" and place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.is_file())
            told = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
            found[key] = digest(json.dumps(told).encode()).hex()
    return {"files_read": found} if found else {}


def _looked_at(taskpool: Mapping[str, Any], use: str) -> dict[str, Any]:
    """A task pool's settings, less those that change the report and not what is looked at."""
    others = {"references", "cache", "select", *(() if use == "select" else ("limit",))}
    return {key: value for key, value in taskpool.items() if key not in others}


def data_line(plan: Plan) -> str:
    """One line that declares what was looked at; empty for methods that look at no data."""
    method = plan.method
    if not isinstance(method, FittedMethod):
        return ""
    facts = plan.data_facts
    splits = ", ".join(dict.fromkeys(str(fact.get("split")) for fact in facts.values()))
    counts = sorted({int(fact.get("examples", 0)) for fact in facts.values()})
    there = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    limit = method.looks_at(counts[-1])
    if limit == 0:
        return "data: none is looked at with these hyperparameters"
    seen = f"{limit:,} of {there}" if limit < counts[-1] else there
    labels = "with labels" if method.reads_labels else "labels unused"
    if any(fact.get("teacher_forcing") for fact in facts.values()) and not (method.reads_labels or method.gradients):
        labels = "right answers as the decoder's inputs"
    where = "NOT the reported split"
    if any(fact.get("reported") for fact in facts.values()):
        where = "THE REPORTED SPLIT"
    harms = [fact["corruption"] for fact in facts.values() if fact.get("corruption")]
    if harms:
        named = dict.fromkeys(f"{harm['name']} {harm['severity']}" for harm in harms)
        where += f", damaged by {', '.join(named)}"
    return (
        f"data: {_SERVES[method.use]} the {splits} split of {', '.join(facts)}: {seen} examples each, {labels}; {where}"
    )


def fitted(plan: Plan, progress: Progress) -> tuple[Plan, Fitted | None]:
    """The plan with an ordinary method in the place of one that looks at data, once that has looked."""
    method, taskpool = plan.method, plan.taskpool
    if not isinstance(method, FittedMethod):
        return plan, None
    from fusion_bench.fit import fit, pool_fitting

    assert isinstance(taskpool, FittingSource)
    job = plan.job
    data = taskpool.fitting_data(
        method.use, list(plan.pool.models), job.protocol, reference=plan.pool.reference, settings=job.settings,
        tokenizers=plan.tokenizers(), progress=progress, heads=plan.heads,
    )  # fmt: skip

    def held_out(checkpoint: Checkpoint) -> dict[str, float]:
        judge = taskpool.held_out(job.protocol)
        found = judge.evaluate(
            checkpoint, settings=job.settings, tokenizers=plan.tokenizers(), only=list(plan.pool.models),
            progress=progress, heads=plan.heads,
        )  # fmt: skip
        failed = [f"{task}: {found[task]['error']}" for task in plan.pool.models if "error" in found[task]]
        if failed:
            raise FusionError("models cannot be chosen, since tasks failed:\n" + "\n".join(failed))
        return {task: schema.primary(found[task]) or 0.0 for task in plan.pool.models}

    fitting = pool_fitting(plan.pool, data, job.settings, protocol=job.protocol, held_out=held_out, progress=progress)
    inputs = replace(plan.merge_inputs(), progress=progress)
    found = fit(method, inputs, fitting)
    return replace(plan, method=found.method), found
