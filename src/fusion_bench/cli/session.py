"""One run of the command: pools and data opened once, jobs executed over them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from fusion_bench.api import check_fit
from fusion_bench.build import build
from fusion_bench.cli.adapters import asked, check_adapter, fuse_to_adapter
from fusion_bench.cli.data_use import data_line, fitted
from fusion_bench.cli.generalization import split_averages, split_up
from fusion_bench.cli.job import Job, apart, canonical, command_line, outside, place, shard_bytes
from fusion_bench.cli.outcome import Outcome
from fusion_bench.cli.plan import Plan
from fusion_bench.errors import ConfigError, FusionError, OutputError
from fusion_bench.method import method_class, method_modules
from fusion_bench.method.base import ModelFusionAlgorithm
from fusion_bench.modelpool import open_modelpool
from fusion_bench.progress import Progress
from fusion_bench.report import outputs, schema
from fusion_bench.report.table import Row
from fusion_bench.taskpool.model_info import model_info

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.modelpool.base import ModelPool
    from fusion_bench.taskpool.base import TaskPool


@dataclass
class Session:
    """What the jobs of one command share: opened pools, task pools with their data, reference rows."""

    _pools: dict[str, ModelPool] = field(default_factory=dict)
    _taskpools: dict[str, TaskPool] = field(default_factory=dict)
    _references: dict[str, dict[str, Any]] = field(default_factory=dict)

    def plan(self, job: Job, overrides: Sequence[str], sweep: bool) -> Plan:
        """Everything a job needs, built and checked; reads headers and file names, no tensor."""
        method = build_method(job.method)
        job = split_up(job)
        pool_key, task_key = canonical(job.modelpool), canonical(job.taskpool)
        if pool_key not in self._pools:
            self._pools[pool_key] = open_modelpool(job.modelpool)
        pool = self._pools[pool_key]
        if task_key not in self._taskpools:
            from fusion_bench.taskpool import open_taskpool

            self._taskpools[task_key] = open_taskpool(job.taskpool)
        taskpool = self._taskpools[task_key]
        check_fit(method, pool)
        if job.unseen and getattr(method, "per_task", False):
            raise ConfigError(
                f"unseen={list(job.unseen)}: method={method.key()} makes one model a task, and there is none for a "
                "task that was not fused. Take a method that makes one model."
            )
        check_device(job.device)
        plan = Plan(job, tuple(overrides), method, pool, taskpool, pool_key, task_key)
        if method.reads_models or plan.references:
            _ = pool.alignment
            _ = plan.data_facts
            if not asked(job):  # factors are merged in a space of their own, which check_adapter tests
                plan.merge_inputs()
        taskpool.check_model(pool.reference.config)
        taskpool.check(plan.tokenizers())
        self._check_outputs(plan)
        check_adapter(plan)
        return plan

    def _check_outputs(self, plan: Plan) -> None:
        job = plan.job
        shard_bytes(job.shard_size)
        for key in ("save_report", "save_model", "save_predictions"):
            path = place(getattr(job, key))
            if path is not None:
                outside(path, [*plan.input_paths(), *([plan.pool.folder] if plan.pool.folder else [])], key)
        report, predictions, model = place(job.save_report), place(job.save_predictions), place(job.save_model)
        apart({"save_model": model, "save_predictions": predictions, "save_report": report})
        if report is not None and not job.dry_run:
            outputs.check_file(report, "save_report")
        if predictions is not None and not job.dry_run:
            outputs.check_folder(predictions, "save_predictions")
        if model is not None:
            from fusion_bench.checkpoint.output import check_space, check_writable

            try:
                if check_writable(model, job.overwrite, plan.origin()) != "complete":
                    many = len(plan.pool.models) if getattr(plan.method, "per_task", False) else 1
                    check_space(model, plan.result_bytes() * many)
            except OutputError as error:
                raise OutputError(f"save_model={error}") from None

    def execute(self, plans: Sequence[Plan], sweep: bool) -> list[dict[str, Any]]:
        """Runs checked plans in order; prints the table and writes the report at the end, and on interruption."""
        reports: list[dict[str, Any]] = []
        try:
            for number, plan in enumerate(plans, 1):
                if sweep and plan.job.progress:
                    print(f"[{number}/{len(plans)}] {' '.join(plan.overrides)}", file=sys.stderr, flush=True)
                reports.append(self._run(plan))
                self._write(plans[0], reports, sweep)
        finally:
            if reports:
                self._print(plans[: len(reports)], reports)
        failed = sorted({task for report in reports for task in schema.tasks(report) if "error" in report[task]})
        if failed:
            raise FusionError(f"tasks failed: {', '.join(failed)}. The others are in the table and in the report.")
        return reports

    def _write(self, plan: Plan, reports: Sequence[dict[str, Any]], sweep: bool) -> None:
        path = place(plan.job.save_report)
        if path is not None:
            outputs.write_json(path, {"runs": list(reports)} if sweep else reports[0])

    def _run(self, plan: Plan) -> dict[str, Any]:
        started = time.perf_counter()
        job, progress = plan.job, Progress(plan.job.progress)
        seconds: dict[str, float] = {}
        there = Outcome.there(plan)
        working, found = (plan, None) if there else fitted(plan, progress)
        if found is not None:
            seconds["fit"] = round(time.perf_counter() - started, 3)
        if there is None:
            fused = fuse_to_adapter(working, progress) if asked(job) else working.fuse(progress)
        outcome = merged = there if there is not None else Outcome.of(fused, plan)
        # Counting parameters reads no tensor, so a merge that is neither saved nor evaluated is not carried out.
        computed = place(job.save_model) is not None or asked(job) or bool(plan.taskpool.tasks)
        if place(job.save_model) is not None:
            outcome = merged.saved(plan, progress, found.record if found else None)
            seconds["save_model"] = round(time.perf_counter() - started, 3)
        began = time.perf_counter()
        results = outcome.evaluated(plan, progress)
        seconds["evaluate"] = round(time.perf_counter() - began, 3)
        references = self._reference_rows(plan, progress) if plan.references else None
        seconds["total"] = round(time.perf_counter() - started, 3)
        run = self._facts(plan, seconds)
        run["data"] = plan.taskpool.describe()
        if references is not None:
            run["references"] = references
        info = results.pop("model_info", None) or model_info(outcome.any)
        run["remarks"] = [*(found.remarks if found else ()), *(_remarks(merged, outcome) if computed else [])]
        if plan.data_facts:
            learnt = found.record if found else Outcome.learnt(plan)
            run["fit"] = {"data": plan.data_facts, "declared": data_line(plan), **learnt}
        results.update(split_averages(job, results))
        return schema.report(info, results, run)

    def _reference_rows(self, plan: Plan, progress: Progress) -> dict[str, Any]:
        """The base on all tasks, and each expert on the task that bears its name."""
        key = f"{plan.pool_key}\n{plan.task_key}\n{plan.job.settings}"
        if key in self._references:
            return self._references[key]
        rows: dict[str, Any] = {}

        def measure(checkpoint: Checkpoint, only: Sequence[str] | None) -> dict[str, Any]:
            found = plan.taskpool.evaluate(
                checkpoint, settings=plan.job.settings, tokenizers=plan.tokenizers(), only=only, progress=progress,
                heads=plan.heads,
            )  # fmt: skip
            kept = {name: value for name, value in found.items() if name not in ("model_info", "run")}
            return kept | split_averages(plan.job, kept)

        if plan.pool.base is not None:
            rows["base"] = measure(plan.pool.base, None)
        own: dict[str, Any] = {}
        for name, model in plan.pool.models.items():
            if name in plan.taskpool.tasks:
                own[name] = measure(model, [name])[name]
        if own:
            scores = [schema.primary(result) for result in own.values()]
            own["average"] = schema.average([score for score in scores if score is not None])
            rows["individual"] = own
        self._references[key] = rows
        return rows

    def _facts(self, plan: Plan, seconds: Mapping[str, float]) -> dict[str, Any]:
        job = plan.job
        chosen = {name: value for name, value in asdict(job).items() if name not in ("method", "modelpool", "taskpool")}
        return {
            "command": command_line(),
            "overrides": list(plan.overrides),
            "method": plan.method.plain(),
            "modelpool": dict(job.modelpool),
            "taskpool": dict(job.taskpool),
            "settings": chosen,
            "seed": job.seed,
            "device": plan.device(),
            "merged_on": plan.merge_device,
            "versions": schema.versions(),
            "inputs": plan.inputs(),
            "seconds": dict(seconds),
            "peak_memory_mb": schema.peak_memory_mb(),
        }

    def _print(self, plans: Sequence[Plan], reports: Sequence[dict[str, Any]]) -> None:
        from fusion_bench.report.table import print_table

        rows = reference_rows(plans, reports)
        for plan, report in zip(plans, reports, strict=True):
            known = report["run"].get("references") or {}
            rows.append(Row(plan.label, report, base=known.get("base")))
        if any(schema.tasks(report) for report in reports):
            print_table(rows)
            for plan, report in zip(plans, reports, strict=True):
                if plan.data_facts:
                    print(f"{plan.label}: {data_line(plan)}")
                for remark in report["run"]["remarks"]:
                    print(f"{plan.label}: {remark}")
        else:
            for report in reports:
                print({"model_info": report["model_info"]})
                for remark in report["run"]["remarks"]:
                    print(remark, file=sys.stderr)


def reference_rows(plans: Sequence[Plan], reports: Sequence[dict[str, Any]]) -> list[Row]:
    """Base and experts once for each set of conditions; where there are several, labelled by what tells them apart."""
    groups: dict[int, list[tuple[Plan, Mapping[str, Any]]]] = {}
    for plan, report in zip(plans, reports, strict=True):
        references = report["run"].get("references")
        if references:
            groups.setdefault(id(references), []).append((plan, references))
    rows = []
    for members in groups.values():
        shared = set.intersection(*[set(plan.overrides) for plan, _ in members])
        told = f" ({' '.join(sorted(shared))})" if len(groups) > 1 and shared else ""
        rows += [Row(f"{label}{told}", results, reference=True) for label, results in members[0][1].items()]
    return rows


def _remarks(merged: Outcome, outcome: Outcome) -> list[str]:
    """What the merge has to say; of one that was found complete only that, where asking would compute it anew."""
    if not outcome.found or merged.surveyed:
        return merged.remarks()
    return ["the model was there already; remarks on its merge are in the report of the run that wrote it"]


def build_method(values: Mapping[str, Any]) -> ModelFusionAlgorithm:
    """The algorithm that a configuration names, with its hyperparameters checked. ConfigError where they are wrong."""
    values = dict(values)
    name = values.pop("name", None)
    if name is None:
        raise ConfigError(f"method.name is missing. Accepted: {', '.join(method_modules())}.")
    kind = method_class(str(name))
    try:
        return build(kind, values, "method")
    except ConfigError as fault:
        # In a sweep only some of the methods may be at fault.
        raise ConfigError(f"{fault} (method={name})" if "unknown key" in str(fault) else str(fault)) from None


def check_device(device: str) -> None:
    """ConfigError for a device that is none, or is not there. Imports torch only where a GPU is asked for by name."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdigit()) or (index and kind in ("auto",)):
        raise ConfigError(f"device={device}: unknown device. Accepted: auto, cpu, cuda, cuda:0, cuda:1 …, mps.")
    if kind in ("cuda", "mps"):
        import torch

        there = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
        if int(index or 0) >= there:
            raise ConfigError(
                f"device={device}: this machine has {there} such devices. Take device=auto or device=cpu."
            )
