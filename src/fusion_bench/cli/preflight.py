"""What a run would cost, told by headers alone."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from fusion_bench.cli.job import place

if TYPE_CHECKING:
    from fusion_bench.cli.plan import Plan
    from fusion_bench.method.base import Inputs

# Rates of a small machine with a local disk, from benchmarks/speed; a guide, not a promise.
_READ, _WRITE, _COMPUTE = 1.5e9, 0.8e9, 2e9


def forecast(plan: Plan) -> list[str]:
    """Lines for a dry run: bytes read and written, passes, peak memory, disk room, a rough time."""
    from fusion_bench.method.base import TensorMethod
    from fusion_bench.method.budget import peak

    inputs = plan.merge_inputs()
    passes = plan.method.passes(inputs) if isinstance(plan.method, TensorMethod) else 1
    outputs = len(inputs.models) if getattr(plan.method, "per_task", False) else 1
    written = plan.result_bytes() * outputs
    read = _model_bytes(inputs) * (passes + outputs - 1)
    times = "1 pass" if passes == 1 else f"{passes} passes"
    base = " and the base" if inputs.base is not None else ""
    lines = [f"reads      {read / 1e9:,.2f} GB: {times} over {len(inputs.models)} models{base}"]
    if outputs > 1:
        lines[0] += f", the last once for each of {outputs} results"
    seconds = read / _READ
    if isinstance(plan.method, TensorMethod):
        lines.append(f"memory     about {peak(plan.method, inputs) / 1e6:,.0f} MB of {inputs.budget / 1e6:,.0f} MB")
        work = sum(plan.method.operations(name, inputs) for name in inputs.alignment.floating) * outputs
        seconds = max(seconds, work / (_COMPUTE * inputs.threads))
    out = place(plan.job.save_model)
    if out is not None:
        where = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        free = shutil.disk_usage(where).free
        many = f", one folder for each of {outputs} tasks" if outputs > 1 else ""
        lines.append(f"writes     {out} ({written / 1e9:,.2f} GB{many}; {free / 1e9:,.1f} GB free)")
        lines.append(f"time       roughly {_spelled(max(seconds, written / _WRITE))}, more where the disk is slow")
    return lines


def _model_bytes(inputs: Inputs) -> int:
    members = [*inputs.models.values(), *([inputs.base] if inputs.base is not None else [])]
    return sum(member.info(name).nbytes for member in members for name in inputs.alignment.names)


def _spelled(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
