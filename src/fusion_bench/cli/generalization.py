"""Seen and unseen tasks: what is fused, what is only measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fusion_bench.cli.job import Job
from fusion_bench.errors import ConfigError
from fusion_bench.report import schema


def split_up(job: Job) -> Job:
    """The job with its pools narrowed to the models that are fused and to the tasks that are measured.

    `seen` names the models that are fused, `unseen` tasks that are measured beside theirs; with `unseen` alone all
    other models of the pool are fused. ConfigError where a name stands in both or twice.
    """
    if job.seen is None and job.unseen is None:
        return job
    seen, unseen = list(job.seen or ()), list(job.unseen or ())
    both = [name for name in seen if name in unseen]
    if both:
        raise ConfigError(f"seen and unseen both name {', '.join(both)}. A task is one or the other.")
    for key in ("modelpool", "taskpool"):
        if getattr(job, key).get("select") is not None:
            raise ConfigError(
                f"{key}.select is given beside seen or unseen, which choose {key[:-4]}s. Give one of them."
            )
    if job.seen is None:
        from fusion_bench.modelpool import open_modelpool

        seen = [name for name in open_modelpool(job.modelpool).models if name not in unseen]
    if not seen:
        raise ConfigError("seen=[] leaves no model to fuse. Name one.")
    return replace(
        job,
        seen=tuple(seen),
        modelpool={**job.modelpool, "select": seen},
        taskpool={**job.taskpool, "select": [*seen, *unseen]},
    )


def split_averages(job: Job, results: Mapping[str, Any]) -> dict[str, float]:
    """The unweighted means over seen and over unseen tasks; nothing where no tasks are told apart."""
    found: dict[str, float] = {}
    for key, names in (("seen_average", job.seen), ("unseen_average", job.unseen)):
        scores = [schema.primary(results[name]) for name in names or () if name in results]
        known = [score for score in scores if score is not None]
        if names and len(known) == len(names):
            found[key] = sum(known) / len(known)
    return found
