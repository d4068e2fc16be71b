"""Fusing from Python: a pool, checkpoints, state dicts or modules in, the same kind out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.align import align
from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.dtypes import parse_dtype, torch_dtype
from fusion_bench.errors import AlignmentError, ConfigError
from fusion_bench.fitting import Fitting, TaskData
from fusion_bench.method.base import Fused, Inputs, Merged, ModelFusionAlgorithm, PerTask, TensorMethod
from fusion_bench.method.budget import check_budget
from fusion_bench.method.fitted import FittedMethod
from fusion_bench.method.inputs import DEFAULT_BUDGET
from fusion_bench.progress import Progress
from fusion_bench.settings import Settings

if TYPE_CHECKING:
    import torch

    from fusion_bench.modelpool.base import ModelPool


def fuse(
    method: ModelFusionAlgorithm,
    models: Any,
    base: Any = None,
    *,
    seed: int = 42,
    threads: int = 0,
    dtype: Any = None,
    progress: Progress | None = None,
    data: Mapping[str, TaskData] | None = None,
    module: torch.nn.Module | None = None,
) -> Any:
    """Fuses `models` with `method`.

    `models`: a ModelPool, the path of a folder pool, or a mapping from name (a sequence names them ``model_0``,
    ``model_1`` …) to any of Checkpoint, path, state dict, ``nn.Module``; `base`: one of these (a pool brings its own).
    The result follows the input: a lazy :class:`Checkpoint` for pools, checkpoints and paths, a dict of tensors for
    state dicts, a module for modules (a copy of the base or the first model); methods that make one model a task return
    a dict from task to such a result. `dtype`: of floating tensors in the result
    (``"bfloat16"``, ``torch.bfloat16``); the base's where None. Inputs are never modified. `data`: for methods that
    look at data, the examples of each model's task; `module`: makes checkpoints and state dicts of an architecture
    that the package does not know live, by copies of it.

    Raises ConfigError where the method and the models do not fit, AlignmentError where the models do not fit one
    another, NonFiniteError when NaN or infinity is read.
    """
    from fusion_bench.modelpool import open_modelpool
    from fusion_bench.modelpool.base import ModelPool

    dtype = None if dtype is None else parse_dtype(str(dtype))
    if isinstance(models, (str, Path)):
        models = open_modelpool({"type": "folder", "path": str(models)})
    if isinstance(models, ModelPool):
        fitting = None if data is None else _fitting(models, data, module, seed, threads, progress)
        how: dict[str, Any] = {"seed": seed, "threads": threads, "dtype": dtype, "progress": progress}
        return _result(fuse_pool(method, models, fitting=fitting, **how))
    if _is_module(models) or (isinstance(models, Mapping) and any(_is_tensor(value) for value in models.values())):
        raise ConfigError("models: one model alone. Give several, as a list or as a mapping from name to model.")
    named = dict(models) if isinstance(models, Mapping) else {f"model_{i}": m for i, m in enumerate(models)}
    samples = list(named.values()) + ([base] if base is not None else [])
    under = None if base is None else _checkpoint(base)
    pool = ModelPool(models={name: _checkpoint(model, under) for name, model in named.items()}, base=under)
    template = base if base is not None else samples[0]
    if module is None and _is_module(template):
        module = template
    fitting = None if data is None else _fitting(pool, data, module, seed, threads, progress)
    fused = fuse_pool(method, pool, seed=seed, threads=threads, dtype=dtype, progress=progress, fitting=fitting)

    def alike(checkpoint: Checkpoint) -> Any:
        if all(_is_module(sample) for sample in samples):
            return module_of(copy.deepcopy(template), checkpoint, dtype)
        if all(isinstance(sample, Mapping) and not isinstance(sample, Checkpoint) for sample in samples):
            return _state_dict(checkpoint)
        return checkpoint

    if isinstance(fused, PerTask):
        return {task: alike(checkpoint) for task, checkpoint in fused.checkpoints.items()}
    return alike(fused.checkpoint) if isinstance(fused, Merged) else fused


def fuse_pool(
    method: ModelFusionAlgorithm,
    pool: ModelPool,
    *,
    seed: int = 42,
    threads: int = 0,
    dtype: str | None = None,
    progress: Progress | None = None,
    budget: int = DEFAULT_BUDGET,
    device: str = "cpu",
    fitting: Fitting | None = None,
) -> Fused:
    """Fuses the models of a pool; everything that can be refused is refused here, before a tensor is read.

    `fitting`: what a method that looks at data needs; it is fitted first.
    """
    inputs = inputs_of(method, pool, seed, threads, dtype, progress, budget, device)
    if isinstance(method, FittedMethod) and fitting is not None:
        from fusion_bench.fit import fit

        return fit(method, inputs, fitting).method.fuse(inputs)
    return method.fuse(inputs)


def inputs_of(
    method: ModelFusionAlgorithm,
    pool: ModelPool,
    seed: int = 42,
    threads: int = 0,
    dtype: str | None = None,
    progress: Progress | None = None,
    budget: int = DEFAULT_BUDGET,
    device: str = "cpu",
) -> Inputs:
    """What `method` is given of a pool, checked in full; no tensor is read."""
    from fusion_bench.family import family_of

    check_fit(method, pool)
    if threads < 0:
        raise ConfigError(f"threads={threads}: expected 0 (one a core) or more.")
    reads = method.reads_models
    alignment = pool.alignment if reads else align(None, {"reference": pool.reference})
    config = pool.reference.config
    inputs = Inputs(
        models=pool.models if reads else {"reference": pool.reference},
        base=pool.base,
        alignment=alignment,
        seed=seed,
        threads=Settings(threads=threads).workers,
        progress=progress or Progress(enabled=False),
        dtype=dtype,
        structure=family_of(config).structure(config, alignment.infos),
        budget=budget,
        device=device,
    )
    method.check_tensors(inputs.alignment)
    merging = method.preview() if isinstance(method, FittedMethod) else method
    if isinstance(merging, TensorMethod):
        check_budget(merging, inputs, method.key())
    return inputs


def check_fit(method: ModelFusionAlgorithm, pool: ModelPool) -> None:
    """ConfigError where the method needs what the pool does not have. Reads names only."""
    if method.needs_base and not pool.has_base:
        raise ConfigError(
            f"method={method.key()} works on what the models changed relative to a base, and the pool {pool.name!r} "
            "has none. Add a folder base/ to the pool (or `_pretrained_` to its models), or take a method without a "
            "base, such as simple_average."
        )
    if method.reads_models and not pool.models:
        raise ConfigError(
            f"method={method.key()} fuses models, and the pool {pool.name!r} holds a base alone. Add models to the "
            "pool, or take method=dummy, which returns the base."
        )
    fewest, most = method.model_counts
    count = len(pool.models)
    if method.reads_models and not fewest <= count <= (most or count):
        wanted = f"{fewest}" if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
        raise ConfigError(
            f"method={method.key()} takes {wanted} {'model' if most == 1 else 'models'}, and the pool {pool.name!r} "
            f"has {count}: {', '.join(pool.models)}. "
            f"Choose some, as in modelpool.select=[{','.join(list(pool.models)[:most])}]."
        )
    method.check(tuple(pool.models))


def _fitting(
    pool: ModelPool,
    data: Mapping[str, TaskData],
    module: torch.nn.Module | None,
    seed: int,
    threads: int,
    progress: Progress | None,
) -> Fitting:
    from fusion_bench.fit import module_fitting, pool_fitting

    if module is not None:
        return module_fitting(module, data, seed, progress)
    if not pool.reference.config:
        raise ConfigError(
            "data= is given, but nothing tells how to run the models: they are tensors without a config. Give module=, "
            "a module of their architecture."
        )
    return pool_fitting(pool, data, Settings(seed=seed, threads=threads), progress=progress, cache=False)


def _result(fused: Fused) -> Any:
    if isinstance(fused, PerTask):
        return dict(fused.checkpoints)
    return fused.checkpoint if isinstance(fused, Merged) else fused


def _checkpoint(model: Any, base: Checkpoint | None = None) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, (str, Path)):
        from fusion_bench.modelpool.members import open_member

        # Adapters go on the given base itself: a copy of it would be rounded to its dtype before the fusion.
        return open_member(str(model), base=None if base is None else lambda: base)
    from fusion_bench.checkpoint.memory import MemoryCheckpoint

    return MemoryCheckpoint.of_module(model) if _is_module(model) else MemoryCheckpoint(model)


def _is_module(model: Any) -> bool:
    return hasattr(model, "state_dict") and hasattr(model, "parameters")


def _state_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    tensors = {name: checkpoint[name] for name in checkpoint}
    tensors.update({alias: tensors[name] for alias, name in checkpoint.aliases.items()})
    return tensors


def module_of(module: Any, checkpoint: Checkpoint, dtype: str | None = None) -> Any:
    """`module` with the values of a checkpoint of the same names and shapes. Raises AlignmentError for others."""
    import torch

    if dtype is not None:
        module = module.to(torch_dtype(dtype))
    others = {*checkpoint, *checkpoint.aliases} ^ set(module.state_dict())
    if others:
        raise AlignmentError(
            f"the result has other tensors than the module ({len(others)}, such as {min(others)}): its layers are not "
            "those of the models. Give checkpoints or folders instead of modules."
        )
    places: dict[int, str] = {}
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            first = places.setdefault(id(tensor), name)
            if checkpoint.stored(first) != checkpoint.stored(name):
                raise AlignmentError(
                    f"{first} and {name} are one tensor in the first module (or the base) and two in another. Fuse "
                    "state dicts instead, or untie them in every module."
                )
            tensor.copy_(checkpoint[name])
    return module


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")
