"""The fusion as one adapter: checked, fused, saved; what is evaluated afterwards is the base with that adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.adapter import AdapterCheckpoint
from fusion_bench.cli.job import Job, apart, outside, place
from fusion_bench.errors import ConfigError, OutputError
from fusion_bench.method.base import Fused, Merged

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.cli.plan import Plan
    from fusion_bench.progress import Progress

# Keys that say how the adapter is made, with what they are where none is asked for.
_KEYS: dict[str, Any] = {"rank": None, "adapter_space": "auto", "adapter_others": "refuse"}


_REMARKS = "\n## Remarks\n\n"


class FusedAdapter(AdapterCheckpoint):
    """A saved adapter over its base, with what the report must say of the fusion."""

    def __init__(self, base: Checkpoint, folder: Path, remarks: tuple[str, ...]) -> None:
        super().__init__(base, folder)
        self._remarks = remarks

    def remarks(self) -> list[str]:
        """What a reader of the report must know of this fusion."""
        return list(self._remarks)


def asked(job: Job) -> bool:
    """Whether the job writes an adapter."""
    return place(job.save_adapter) is not None


def check_adapter(plan: Plan) -> None:
    """Refuses before any work what cannot become an adapter, or a place where it cannot be written."""
    job = plan.job
    out = place(job.save_adapter)
    if out is None:
        given = [f"{key}={getattr(job, key)}" for key, usual in _KEYS.items() if getattr(job, key) != usual]
        if given:
            raise ConfigError(
                f"{', '.join(given)}: says how an adapter is made. Add save_adapter=DIR, or leave it out."
            )
        return
    from fusion_bench.adapter.fuse import check
    from fusion_bench.checkpoint.output import check_writable

    outside(out, [*plan.input_paths(), *([plan.pool.folder] if plan.pool.folder else [])], "save_adapter")
    others = ("save_model", "save_predictions", "save_report")
    apart({"save_adapter": out, **{key: place(getattr(job, key)) for key in others}})
    check(
        plan.method,
        plan.pool,
        job.rank,
        job.adapter_space,
        job.adapter_others,
        job.seed,
        job.threads,
        None,
        plan.budget,
    )
    try:
        check_writable(out, job.overwrite, adapter_origin(plan))
    except OutputError as error:
        raise OutputError(f"save_adapter={error}") from None


def adapter_values(job: Job) -> dict[str, Any]:
    """What decides an adapter beside method and inputs, and with it a model saved of it; empty where none is asked."""
    return {"adapter": {key: getattr(job, key) for key in _KEYS}} if asked(job) else {}


def adapter_origin(plan: Plan) -> dict[str, Any]:
    """Everything that decides the bytes of the saved adapter."""
    return {**plan.origin(), **adapter_values(plan.job)}


def adapter_lines(plan: Plan) -> list[str]:
    """What a dry run says of the adapter."""
    if not asked(plan.job):
        return []
    from fusion_bench.adapter.fuse import check

    job = plan.job
    _, way, _ = check(plan.method, plan.pool, job.rank, job.adapter_space, job.adapter_others)
    words = {
        "sum": "factors side by side", "core": "merged in Core Space", "knots": "merged in the space of KnOTS",
        "dense": "full tensors merged, factors cut from them", "ia3": "vectors merged around 1",
    }  # fmt: skip
    return [f"would save {place(job.save_adapter)} (one adapter: {words[way]})"]


def fuse_to_adapter(plan: Plan, progress: Progress) -> Fused:
    """Fuses the pool into one adapter and saves it; the result is the base with the adapter that was written."""
    from fusion_bench.adapter import fuse_adapters, save_adapter
    from fusion_bench.checkpoint.output import check_writable
    from fusion_bench.checkpoint.views import Cast
    from fusion_bench.cli.stopping import continuable
    from fusion_bench.report.card import model_card

    job, out, base = plan.job, place(plan.job.save_adapter), plan.pool.base
    assert out is not None
    assert base is not None, "a pool without a base was refused"
    if check_writable(out, job.overwrite, adapter_origin(plan)) == "complete":
        print(f"{out}: complete, written by this command before; nothing to do", file=sys.stderr)
        remarks = _remarks_in(out / "README.md")
    else:
        with continuable(out):
            adapter = fuse_adapters(
                plan.method,
                plan.pool,
                rank=job.rank,
                space=job.adapter_space,
                others=job.adapter_others,
                seed=job.seed,
                threads=job.threads,
                progress=progress,
                budget=plan.budget,
            )
            save_adapter(
                adapter,
                out,
                dtype=plan.output_dtype,
                overwrite=job.overwrite,
                origin=adapter_origin(plan),
                card=model_card(plan).replace("library_name: transformers", "library_name: peft")
                + "".join([_REMARKS, *(f"- {remark}\n" for remark in adapter.remarks)] if adapter.remarks else []),
                threads=job.settings.workers,
                progress=progress,
            )
            remarks = adapter.remarks
        print(f"saved {out}", file=sys.stderr)
    fused = FusedAdapter(base, out, remarks)
    return Merged(fused if plan.output_dtype is None else Cast(fused, plan.output_dtype))


def _remarks_in(card: Path) -> tuple[str, ...]:
    """What an earlier run had to say, out of the card that it wrote."""
    if not card.is_file():
        return ()
    lines = card.read_text(encoding="utf-8").partition(_REMARKS)[2].splitlines()
    return tuple(line.removeprefix("- ") for line in lines if line.startswith("- "))
