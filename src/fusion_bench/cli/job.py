"""Jobs of the command line: checked all before the first begins, then run over shared pools and data."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fusion_bench.build import build, hyper
from fusion_bench.errors import ConfigError, OutputError
from fusion_bench.settings import Settings

Place = str | Literal[False] | None


@dataclass(frozen=True)
class Job:
    """The top-level keys of the command line."""

    method: Mapping[str, Any] = hyper({}, "what fuses")
    modelpool: Mapping[str, Any] = hyper({}, "what is fused")
    taskpool: Mapping[str, Any] = hyper({}, "what is measured")
    save_report: Place = hyper(None, "JSON file for the report; null or false writes none")
    save_model: Place = hyper(None, "folder for the fused model; null or false writes none")
    save_adapter: Place = hyper(None, "folder for the fusion as one adapter, for PEFT; null or false writes none")
    save_predictions: Place = hyper(None, "folder for one JSON-lines file per task; null or false writes none")
    overwrite: bool = hyper(
        False, "replace what save_model or save_adapter finds in its place, once the new output is whole"
    )
    rank: int | float | None = hyper(
        None, "of the adapter's factors, or the share of each change they keep (0.95); null keeps everything"
    )
    adapter_space: Literal["auto", "core", "knots", "dense"] = hyper(
        "auto", "where adapters are merged: Core Space, KnOTS, full tensors; auto: weighted sums exactly, else core"
    )
    adapter_others: Literal["refuse", "drop", "save"] = hyper(
        "refuse", "changes that no factors hold (norms, biases, heads): refused, left out, or saved whole"
    )
    protocol: Literal["disjoint", "paper"] = hyper(
        "disjoint", "what methods may adapt on: disjoint keeps away from the reported split, paper uses it and says so"
    )
    seen: tuple[str, ...] | None = hyper(None, "the models that are fused, with their tasks; null: all of the pool")
    unseen: tuple[str, ...] | None = hyper(None, "tasks that no fused model was trained for; null: none")
    seed: int = hyper(42, "of every draw that a method makes", low=0)
    device: str = hyper("auto", "auto, cpu, cuda, cuda:0 …")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = hyper(
        "auto", "precision of the fused model; auto: files keep the base's, evaluation runs in float32"
    )
    batch_size: int | Literal["auto"] = hyper("auto", "examples a batch", low=1)
    threads: int = hyper(0, "worker threads; 0: one a core", low=0)
    shard_size: str = hyper("5GB", "largest weights file that save_model writes, in bytes or as in 500MB")
    memory_budget: str = hyper("800MB", "anonymous memory that a merge may take, as in 800MB or 4GB")
    dry_run: bool = hyper(False, "check everything, print the plan, compute nothing")
    digests: bool = hyper(False, "put full digests of all input files into the report")
    progress: bool = hyper(True, "show progress of long work")

    @property
    def settings(self) -> Settings:
        dtype = self.dtype if self.dtype in ("bfloat16", "float64") else "float32"
        return Settings(self.device, dtype, self.batch_size, self.threads, self.seed)


def run_jobs(jobs: Sequence[tuple[Mapping[str, Any], Sequence[str]]], sweep: bool) -> list[dict[str, Any]]:
    """Runs composed configurations, each with the overrides that tell it from the others of its sweep.

    Returns the reports. Anything that can be refused is refused before any tensor is read.
    """
    from fusion_bench.cli.session import Session

    common = set.intersection(*[set(overrides) for _, overrides in jobs]) if len(jobs) > 1 else set()
    built = [(build(Job, values, ""), tuple(o for o in overrides if o not in common)) for values, overrides in jobs]
    for job, _ in built:
        for key in ("save_report", "save_model", "save_adapter", "save_predictions"):
            if getattr(job, key) == "":
                raise ConfigError(f"{key}= is empty. Give a place, or {key}=null to write nothing.")
    _distinct_outputs([job for job, _ in built])
    session = Session()
    plans = [session.plan(job, overrides, sweep) for job, overrides in built]
    if built[0][0].dry_run:
        for plan in plans:
            print(plan.describe())
        return [{} for _ in plans]
    return session.execute(plans, sweep)


def _distinct_outputs(jobs: Sequence[Job]) -> None:
    if len(jobs) < 2:
        return
    for key in ("save_model", "save_adapter", "save_predictions"):
        given = [place(getattr(job, key)) for job in jobs]
        places = [path.absolute().resolve() for path in given if path is not None]
        if len(set(places)) < len(places):
            raise ConfigError(
                f"{key}={given[0]}: all jobs of the sweep would write into one folder. Put what is swept into the "
                f"name, as in '{key}=out/${{method.name}}' or '{key}=out/${{method.scaling_factor}}'."
            )
    if len({job.save_report for job in jobs}) > 1:
        raise ConfigError(
            "save_report: a sweep writes one report for all its jobs. Give one name without swept values."
        )


def shard_bytes(text: str) -> int:
    """The largest weights file in bytes."""
    return size_bytes(text, "shard_size")


def size_bytes(text: str, key: str) -> int:
    """``"500MB"`` -> 500,000,000; ConfigError, naming `key`, for what is no size."""
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    number = text.strip().upper()
    unit = next((u for u in sorted(units, key=len, reverse=True) if number.endswith(u)), "")
    try:
        size = int(float(number.removesuffix(unit)) * units.get(unit, 1))
    except ValueError:
        size = 0
    if size <= 0:
        raise ConfigError(f"{key}={text}: expected a size in bytes, as in 500000000, 500MB or 5GB.")
    return size


def place(value: Place) -> Path | None:
    """The path that an output key names, None where it is switched off."""
    return Path(value).expanduser() if value else None


def outside(path: Path, inputs: Sequence[Path], key: str) -> None:
    """OutputError where an output would lie in one of the inputs it is made from, or be one of them."""
    real = path.absolute().resolve()
    for given in inputs:
        if real.is_relative_to(given.absolute().resolve()):
            raise OutputError(f"{key}={path}: inside {given}, which is an input of this run. Give a place outside it.")


def apart(places: Mapping[str, Path | None]) -> None:
    """OutputError where one output would lie in the folder of another."""
    real = {key: path.absolute().resolve() for key, path in places.items() if path is not None}
    for key, path in real.items():
        for other, folder in real.items():
            if key != other and other != "save_report" and path.is_relative_to(folder):
                raise OutputError(
                    f"{key}={places[key]}: inside {other}={places[other]}. Give each output its own place."
                )


def canonical(spec: Mapping[str, Any]) -> str:
    """A text that equal specifications share."""
    return json.dumps(spec, sort_keys=True, default=str)


def command_line() -> list[str]:
    """The command as it was given."""
    return ["fusion_bench", *sys.argv[1:]]
