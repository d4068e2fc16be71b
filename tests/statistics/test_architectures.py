"""Every method on every kind of model: encoder-decoder, decoder with layers stored the other way, plain modules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from statistics_cases import Questions, gpt2, sentences, t5_fitting

from fusion_bench.api import fuse, fuse_pool, inputs_of
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.fit import fit
from fusion_bench.method.engine import MergedCheckpoint
from fusion_bench.method.merging.fisher_merging import FisherMerging
from fusion_bench.method.merging.mats import Mats
from fusion_bench.method.merging.regmean import Regmean
from fusion_bench.method.merging.regmean_plus_plus import RegmeanPlusPlus
from fusion_bench.method.solved_blocks import blocks_of
from fusion_bench.modelpool import open_modelpool
from fusion_bench.modelpool.base import ModelPool

METHODS = [
    FisherMerging(examples=6), FisherMerging(examples=6, estimator="empirical"), Regmean(examples=6),
    RegmeanPlusPlus(examples=6), Mats(examples=6, iterations=5), Mats(examples=6, metric="gram", iterations=5),
    Mats(examples=6, metric="diag_fisher"), Mats(metric="identity"),
]  # fmt: skip
EVERY = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key() + "-" + str(getattr(m, "metric", "")))
TASKS = ("cola", "rte", "sst2")


def means(models: list[Any]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([m[name].double() for m in models]).mean(0) for name in models[0]}


def moved(merged: Any, mean: dict[str, torch.Tensor]) -> set[str]:
    """The tensors that are not the mean of the models."""
    return {name for name, tensor in mean.items() if not torch.allclose(merged[name].double(), tensor, atol=1e-6)}


@EVERY
def test_gpt2(method: Any) -> None:
    base = gpt2(0)
    models = {name: gpt2(seed) for name, seed in (("a", 1), ("b", 2))}
    data = {name: sentences(name, seed) for seed, name in enumerate(models)}
    merged = fuse(method, models, base, data=data)
    assert type(merged) is type(base)
    changed = moved(merged.state_dict(), means([m.state_dict() for m in models.values()]))
    linear = {n for n in merged.state_dict() if n.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))}
    if method.key() == "fisher_merging":
        # Six tokens of eight positions, so the last rows of the table of positions are never looked at.
        assert changed == {n for n, _ in merged.named_parameters()}
    else:
        assert changed == (set() if getattr(method, "metric", "") == "identity" else linear | {"score.weight"})
    one = fuse(method, {"a": models["a"]}, base, data=data).state_dict()
    for name, tensor in models["a"].state_dict().items():
        torch.testing.assert_close(one[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def pool() -> ModelPool:
    return open_modelpool({"type": "embedded", "name": "mini_t5_glue_lora16", "select": list(TASKS)})


@EVERY
def test_the_embedded_pool_of_adapters(method: Any, pool: ModelPool) -> None:
    tasks = {name: Questions(name, seed) for seed, name in enumerate(TASKS)}
    fused: Any = fuse_pool(method, pool, dtype="F32", fitting=t5_fitting(tasks, torch.float32), threads=2)
    merged = fused.checkpoint
    names = [name for name in merged if merged.infos[name].floating]
    assert all(torch.isfinite(merged[name]).all() for name in names)
    average: Any = fuse_pool(Mats(metric="identity"), pool, dtype="F32", fitting=t5_fitting(tasks, torch.float32))
    changed = {name for name in names if not torch.allclose(merged[name], average.checkpoint[name], atol=1e-6)}
    # The adapters are on attention: elsewhere the models are equal.
    assert all(name.rsplit(".", 2)[-2] in "qkvo" for name in changed)
    assert bool(changed) == (getattr(method, "metric", "") != "identity")


def test_blocks_of_an_encoder_decoder_in_the_order_in_which_they_run(tiny: Any) -> None:
    from fusion_bench.statistics.live import linear_layers
    from fusion_bench.statistics.uses import uses_of

    model = tiny.t5(1)
    pool = ModelPool({"q": MemoryCheckpoint.of_module(model)})
    inputs = inputs_of(Regmean(), pool)
    layers = linear_layers(model, pool.reference, inputs.structure)
    blocks = blocks_of(inputs, uses_of(model, layers, Questions("q", 1)).order)
    prefixes = ["encoder.block.0.", "encoder.block.1.", "decoder.block.0.", "decoder.block.1."]
    assert [all(name.startswith(prefix) for name in block) for prefix, block in zip(prefixes, blocks, strict=True)]
    assert "encoder.block.0.layer.0.layer_norm.weight" in blocks[0]
    assert sum(map(len, blocks)) == sum(".block." in name for name in inputs.alignment.floating)


def test_layerwise_regression_of_t5_by_definition(tiny: Any) -> None:
    """The Grams of the second encoder block, made by a module with the merged first block and a model's own second."""
    from copy import deepcopy

    base = tiny.t5(1).double()
    models = {name: tiny.perturbed(base, seed, 0.2) for name, seed in (("a", 1), ("b", 2))}
    pool = ModelPool({name: MemoryCheckpoint.of_module(m) for name, m in models.items()})
    tasks = {name: Questions(name, seed, examples=12) for seed, name in enumerate(models)}
    method = RegmeanPlusPlus(reduce_non_diagonal_ratio=0.9, batch_size=5)
    fused: Any = fuse_pool(method, pool, fitting=t5_fitting(tasks))
    left, right = torch.zeros(16, 16, dtype=torch.float64), torch.zeros(16, 8, dtype=torch.float64)
    target = "encoder.block.1.layer.0.SelfAttention.v"
    for name, model in models.items():
        mixed = deepcopy(model)
        with torch.no_grad():
            for key, parameter in mixed.named_parameters():
                if not key.startswith("encoder.block.1."):
                    parameter.copy_(fused.checkpoint[key])
        rows: list[torch.Tensor] = []
        handle = mixed.get_submodule(target).register_forward_pre_hook(
            lambda _, given, rows=rows: rows.append(given[0])
        )
        batch = tasks[name].collate(range(12))
        tasks[name].forward(mixed, batch)
        handle.remove()
        real = rows[0][batch.masks["encoder"]].detach()
        gram = real.T @ real / len(real)
        reduced = 0.9 * gram + 0.1 * torch.diag(gram.diagonal())
        left += reduced
        right += reduced @ model.get_submodule(target).weight.detach().T
    wanted = torch.linalg.solve(left, right).T
    torch.testing.assert_close(fused.checkpoint[f"{target}.weight"], wanted, rtol=1e-7, atol=1e-9)


def test_padding_and_batches_change_no_merge(tiny: Any) -> None:
    base = tiny.t5(1).double()
    models = {name: tiny.perturbed(base, seed) for name, seed in (("a", 1), ("b", 2))}
    pool = ModelPool({name: MemoryCheckpoint.of_module(m) for name, m in models.items()})
    for kind in (Regmean, RegmeanPlusPlus):
        found = []
        for extra, rows in ((0, 2), (6, 6)):
            tasks: dict[str, Any] = {name: Questions(name, seed, extra=extra) for seed, name in enumerate(models)}
            fused: Any = fuse_pool(kind(batch_size=rows), pool, fitting=t5_fitting(tasks))
            found.append({name: fused.checkpoint[name] for name in fused.checkpoint})
        for name, tensor in found[0].items():
            torch.testing.assert_close(found[1][name], tensor, rtol=1e-7, atol=1e-10)


@EVERY
def test_half_precision_checkpoints(tiny: Any, method: Any) -> None:
    """Computed in float32, rounded once."""
    base = tiny.t5(1)
    models = {name: tiny.perturbed(base, seed).to(torch.bfloat16) for name, seed in (("a", 1), ("b", 2))}
    wide = {name: m.float() for name, m in models.items()}
    tasks = {name: Questions(name, seed) for seed, name in enumerate(models)}
    results: list[Any] = []
    for each in ({n: MemoryCheckpoint.of_module(m.to(torch.bfloat16)) for n, m in models.items()},
                 {n: MemoryCheckpoint.of_module(m.float()) for n, m in wide.items()}):  # fmt: skip
        fused: Any = fuse_pool(method, ModelPool(each), fitting=t5_fitting(tasks, torch.float32))
        results.append({name: fused.checkpoint[name] for name in fused.checkpoint})
    for name, tensor in results[0].items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, results[1][name].to(torch.bfloat16), rtol=0, atol=0)


def test_fits_are_remembered_with_their_merge(tiny: Any, tmp_path: Any) -> None:
    """A second run with the same cache makes no model live and gives the same bytes."""
    base = tiny.t5(1)
    models = {name: tiny.perturbed(base, seed) for name, seed in (("a", 1), ("b", 2))}
    pool = ModelPool({name: MemoryCheckpoint.of_module(m) for name, m in models.items()})
    tasks = {name: Questions(name, seed) for seed, name in enumerate(models)}
    for method in METHODS:
        inputs = inputs_of(method, pool)
        fitting = t5_fitting(tasks, torch.float32, identity={"a": 1, "b": 2}, cache=tmp_path)
        first = MergedCheckpoint(fit(method, inputs, fitting).method, inputs)  # type: ignore[arg-type]
        unloaded = replace(fitting, load=lambda checkpoint: pytest.fail("made live"))
        second = MergedCheckpoint(fit(method, inputs, unloaded).method, inputs)  # type: ignore[arg-type]
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", METHODS[:4], ids=lambda m: m.key())
def test_single_precision_is_near_double(tiny: Any, method: Any) -> None:
    base = tiny.t5(1)
    models = {name: tiny.perturbed(base, seed, 0.1) for name, seed in (("a", 1), ("b", 2))}
    tasks: dict[str, Any] = {name: Questions(name, seed, examples=40) for seed, name in enumerate(models)}
    results = []
    for dtype in (torch.float32, torch.float64):
        pool = ModelPool({name: MemoryCheckpoint.of_module(m.to(dtype)) for name, m in models.items()})
        fused: Any = fuse_pool(replace(method, examples=40), pool, fitting=t5_fitting(tasks, dtype))
        results.append({name: fused.checkpoint[name].double() for name in fused.checkpoint})
    for name, tensor in results[1].items():
        torch.testing.assert_close(results[0][name], tensor, rtol=1e-4, atol=1e-4)
