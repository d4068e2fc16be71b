"""Giving an algorithm that looks at data what it needs: live modules, data, a place for what is expensive."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import DataError, NonFiniteError
from fusion_bench.fitting import Fitted, Fitting, Protocol, TaskData
from fusion_bench.parallel import torch_threads
from fusion_bench.progress import Progress
from fusion_bench.settings import Settings

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.method.base import Inputs
    from fusion_bench.method.fitted import FittedMethod
    from fusion_bench.modelpool.base import ModelPool


_LARGE = 20 * 10**6


def fit(method: FittedMethod, inputs: Inputs, fitting: Fitting) -> Fitted:
    """Fits after it is certain that every model has its data; what is learnt is a method checked like any other."""
    from fusion_bench.method.base import TensorMethod
    from fusion_bench.method.budget import check_budget
    from fusion_bench.method.fitted import require_data

    require_data(method, inputs, fitting)
    entries = sum(inputs.alignment.infos[name].numel for name in inputs.alignment.floating)
    # Threads inside an operation wait for one another after each: a small model is faster without them.
    import torch

    threads = inputs.threads if entries >= _LARGE else 1
    # The caller's code may stand under inference mode, and gradients are needed here.
    with torch_threads(threads), torch.inference_mode(False), torch.enable_grad():
        fitted = method.fit(inputs, fitting)
    if isinstance(fitted.method, TensorMethod):
        check_budget(fitted.method, inputs, method.key())
    return fitted


def pool_fitting(
    pool: ModelPool,
    tasks: Mapping[str, TaskData],
    settings: Settings,
    *,
    protocol: Protocol = "disjoint",
    held_out: Callable[[Checkpoint], Mapping[str, float]] | None = None,
    progress: Progress | None = None,
    cache: bool = True,
) -> Fitting:
    """For the models of a pool, made live by their family."""
    from fusion_bench.family import family_of

    family = family_of(pool.reference.config)
    head = next((getattr(model, "head", None) for model in pool.models.values()), None)

    def load(checkpoint: Checkpoint) -> torch.nn.Module:
        import torch

        if head is not None:
            # Any head makes the body run; the data of a task put its own in the place.
            from fusion_bench.checkpoint.with_head import WithHead

            checkpoint = WithHead(checkpoint, head)

        from fusion_bench.taskpool.placement import device_of

        dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        return family.load(checkpoint, dtype, device_of(settings), settings.workers)

    # What is measured of a model depends on the arithmetic, too.
    from fusion_bench.taskpool.placement import device_of

    how = {"dtype": settings.dtype, "device": str(device_of(settings))}
    configs = {name: dict(model.config) for name, model in pool.models.items()}
    identity = {name: {"model": model, "config": configs.get(name), **how} for name, model in pool.identity.items()}
    return Fitting(
        tasks=tasks,
        load=load,
        progress=progress or Progress(enabled=False),
        seed=settings.seed,
        protocol=protocol,
        token_stream=family.token_stream,
        held_out=held_out or accuracies(tasks, load),
        identity=identity if cache else None,
        cache=cache_folder() if cache else None,
    )


def module_fitting(
    module: torch.nn.Module, tasks: Mapping[str, TaskData], seed: int = 42, progress: Progress | None = None
) -> Fitting:
    """For modules of any kind: checkpoints become copies of `module`. Nothing is kept on disk."""
    from fusion_bench.api import module_of

    def load(checkpoint: Checkpoint) -> torch.nn.Module:
        wide = any(info.dtype == "F64" for info in checkpoint.infos.values())
        made: Any = module_of(copy.deepcopy(module), checkpoint, "F64" if wide else "F32")
        loaded: torch.nn.Module = made.eval().requires_grad_(False)
        return loaded

    return Fitting(
        tasks=tasks,
        load=load,
        progress=progress or Progress(enabled=False),
        seed=seed,
        held_out=accuracies(tasks, load),
    )


def accuracies(
    tasks: Mapping[str, TaskData], load: Callable[[Checkpoint], torch.nn.Module], rows: int = 64
) -> Callable[[Checkpoint], Mapping[str, float]]:
    """What scores a checkpoint by the share of examples whose likeliest class is the labelled one, task by task."""

    def score(checkpoint: Checkpoint) -> dict[str, float]:
        import torch

        module = load(checkpoint)
        found = {}
        for name, data in tasks.items():
            right = 0
            with torch.inference_mode():
                for batch in data.batches(rows):
                    if batch.labels is None:
                        raise DataError(f"{name}: the data have no labels, and models are chosen by them.")
                    logs = data.log_probs(module, batch)
                    if logs.isnan().any():
                        raise NonFiniteError(f"{name}: the model's outputs are NaN. Check the model and the data.")
                    if int(batch.labels.max()) >= logs.shape[-1]:
                        raise DataError(
                            f"{name}: label {int(batch.labels.max())}, and the model has {logs.shape[-1]} classes."
                        )
                    right += int((logs.argmax(-1) == batch.labels).sum())
            found[name] = right / max(1, len(data))
        return found

    return score


def cache_folder() -> Path:
    """Where statistics and interrupted fits are kept: FUSION_BENCH_CACHE, else in the user's cache folder."""
    given = os.environ.get("FUSION_BENCH_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given).expanduser() if given else home / "fusion_bench"
