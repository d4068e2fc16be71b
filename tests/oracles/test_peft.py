"""The elementary methods against PEFT: its merge utilities on tensors, and its adapters on a tiny model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import loops
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from transformers import T5Config, T5ForConditionalGeneration

from fusion_bench import SimpleAverage, TaskArithmetic, TiesMerging, fuse, open_modelpool

SHAPES: list[tuple[int, ...]] = [(1,), (7,), (5, 3), (3, 5), (2, 3, 4), (40, 1), (37, 29)]
DENSITIES = [0.1, 0.29, 0.5, 0.85, 1.0]
WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (0.25, 3.0, 1.0, 0.5), (1.0, -0.5, 2.0, -1.5), (0.0, 1.0, 0.0, 2.0)]


def distinct(shape: tuple[int, ...], count: int, seed: int, spread: float = 1.0) -> list[torch.Tensor]:
    """Deltas in which no magnitude occurs twice, so that no rule for ties decides what is kept."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    out = []
    for _ in range(count):
        magnitudes = (rng.permutation(size) + 1 + 0.5 * rng.random(size)) * spread / size
        out.append(torch.from_numpy((magnitudes * rng.choice([-1, 1], size=size)).reshape(shape)))
    return out


def merged_delta(method: TiesMerging | TaskArithmetic, deltas: list[torch.Tensor]) -> torch.Tensor:
    """What the library adds to a base of zeros."""
    return fuse(method, [{"w": delta} for delta in deltas], {"w": torch.zeros_like(deltas[0])})["w"]


def peft_ties(deltas: list[torch.Tensor], weights: tuple[float, ...], density: float) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")
        return merge_utils.ties(deltas, torch.tensor(weights, dtype=deltas[0].dtype), density)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ties(shape: tuple[int, ...], density: float, count: int) -> None:
    """`compat: peft` is PEFT's function, for any weights."""
    for seed, weights in enumerate(WEIGHTS):
        deltas, used = distinct(shape, count, seed), weights[:count]
        method = TiesMerging(scaling_factor=1.0, density=density, weights=used, compat="peft")
        assert torch.equal(merged_delta(method, deltas), peft_ties(deltas, used, density)), used


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_ties_with_unit_weights_has_three_spellings(shape: tuple[int, ...], density: float) -> None:
    """Unit weights: PEFT, mergekit's rule and the plain switches agree (mergekit keeps at least one entry)."""
    deltas = distinct(shape, 3, seed=17)
    expected = peft_ties(deltas, (1.0, 1.0, 1.0), density)
    switches = TiesMerging(
        scaling_factor=1.0, density=density, merge_func="mean", scope="tensor", count="exact", zero_sum="positive"
    )
    assert torch.equal(merged_delta(switches, deltas), expected)
    if int(density * deltas[0].numel()) > 0:
        mergekit = TiesMerging(scaling_factor=1.0, density=density, compat="mergekit")
        assert torch.equal(merged_delta(mergekit, deltas), expected)


def test_ties_counts_a_total_of_zero_as_positive() -> None:
    """Opposite deltas: PEFT merges the positive ones at every coordinate."""
    first = distinct((6, 5), 1, seed=3)[0]
    deltas = [first, -first, first, -first]
    merged = merged_delta(TiesMerging(scaling_factor=1.0, density=1.0, compat="peft"), deltas)
    assert torch.equal(merged, peft_ties(deltas, (1.0, 1.0, 1.0, 1.0), 1.0))
    assert torch.equal(merged, first.abs())


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_a_model_of_weight_zero_votes_and_counts(density: float) -> None:
    """PEFT elects without weights and divides by the number of models that agree, whatever they weigh."""
    deltas = [torch.tensor([[3.0, 1.0]], dtype=torch.float64), torch.tensor([[-2.0, 2.0]], dtype=torch.float64)]
    if density == 0.5:
        deltas = [torch.cat([delta, delta / 8]) for delta in deltas]
    expected = peft_ties(deltas, (0.0, 1.0), density)
    assert expected[0].tolist() == [0.0, 1.0]
    method = TiesMerging(scaling_factor=1.0, density=density, weights=(0.0, 1.0), compat="peft")
    assert torch.equal(merged_delta(method, deltas), expected)


def test_ties_in_single_precision() -> None:
    deltas = [delta.float() for delta in distinct((37, 29), 4, seed=8)]
    for weights in WEIGHTS:
        method = TiesMerging(scaling_factor=1.0, density=0.3, weights=weights, compat="peft")
        merged = merged_delta(method, deltas)
        assert merged.dtype == torch.float32
        torch.testing.assert_close(merged, peft_ties(deltas, weights, 0.3), rtol=1e-6, atol=1e-6)


def test_ties_trims_each_tensor_of_a_model() -> None:
    """A model of several tensors of different scale is PEFT's function on each of them, then λ."""
    names = {"z": (7, 3), "a": (40,), "M": (2, 3, 4)}
    columns = {name: distinct(shape, 3, seed=i, spread=10.0**i) for i, (name, shape) in enumerate(names.items())}
    base = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in names.items()}
    models = [{name: column[i] for name, column in columns.items()} for i in range(3)]
    weights = (1.0, 0.5, 2.0)
    merged = fuse(TiesMerging(scaling_factor=0.7, density=0.4, weights=weights, compat="peft"), models, base)
    for name, column in columns.items():
        torch.testing.assert_close(merged[name], 0.7 * peft_ties(column, weights, 0.4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.3, -0.5])
def test_task_arithmetic(shape: tuple[int, ...], factor: float) -> None:
    deltas = distinct(shape, 4, seed=5)
    expected = merge_utils.task_arithmetic(deltas, torch.full((4,), factor, dtype=torch.float64))
    torch.testing.assert_close(
        merged_delta(TaskArithmetic(scaling_factor=factor), deltas), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES[:-1])
def test_magnitude_prune(shape: tuple[int, ...], density: float) -> None:
    """Pruning alone, without an election, is the sum of merges of one model each."""
    deltas = distinct(shape, 3, seed=9)
    weights = (1.0, -0.5, 2.0)
    total = torch.zeros_like(deltas[0])
    for weight, delta in zip(weights, deltas, strict=True):
        method = TiesMerging(scaling_factor=weight, density=density, scope="tensor", merge_func="sum")
        total += merged_delta(method, [delta])
    expected = merge_utils.magnitude_prune(deltas, torch.tensor(weights, dtype=torch.float64), density)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)


def lora_state(rank: int, alpha: float, up: list[list[float]], down: list[list[float]]) -> np.ndarray:
    return loops.lora_delta(np.array(up), np.array(down), alpha, rank)


def test_the_weighted_sum_of_two_adapters() -> None:
    """G20: scaled by their weights, two folded adapters add up to the exact ΔW and not to the factor-wise one."""
    first = torch.from_numpy(lora_state(1, 2.0, [[1.0], [0.0]], [[1.0, 0.0, 2.0]]))
    second = torch.from_numpy(lora_state(1, 0.5, [[2.0], [1.0]], [[0.0, 1.0, 1.0]]))
    merged = merged_delta(TaskArithmetic(scaling_factor=1.0), [0.5 * first, second])
    assert merged.tolist() == [[1, 1, 3], [0, 0.5, 0.5]]
    factor_wise = torch.tensor([[2.414214, 1.707107, 6.535534], [0.707107, 0.5, 1.914214]])
    assert (merged - factor_wise).abs().max() > 1


# A pool of adapters on disk.

RANKS_AND_ALPHAS: dict[str, tuple[int, float, list[str]]] = {
    "first": (2, 6.0, ["q", "v"]),
    "second": (3, 3.0, ["q", "v", "wo"]),
    "third": (4, 1.0, ["k", "v"]),
}
PREFIX = "base_model.model."


@pytest.fixture(scope="module", params=["float64", "float32"])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 under `base` and three plain LoRA adapters with different ranks, scalings and target modules."""
    dtype = getattr(torch, request.param)
    folder = tmp_path_factory.mktemp(f"pool-{request.param}")
    config = T5Config(vocab_size=40, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3, decoder_start_token_id=0)
    torch.manual_seed(1)
    T5ForConditionalGeneration(config).eval().to(dtype).save_pretrained(folder / "base")
    for seed, (name, (rank, alpha, targets)) in enumerate(RANKS_AND_ALPHAS.items()):
        model = T5ForConditionalGeneration.from_pretrained(folder / "base", dtype=dtype)
        lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="SEQ_2_SEQ_LM")
        adapted = get_peft_model(model, lora, autocast_adapter_dtype=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter_name, parameter in adapted.named_parameters():
                if "lora_" in parameter_name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
        adapted.save_pretrained(folder / name)
    return folder


def read(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def folded_by_loops(pool: Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """The base in float64, and for every adapter the deltas s·B·A of the weights that it touches."""
    base = {name: tensor.double().numpy() for name, tensor in read(pool / "base" / "model.safetensors").items()}
    deltas: dict[str, dict[str, np.ndarray]] = {}
    for name, (rank, alpha, _) in RANKS_AND_ALPHAS.items():
        state = read(pool / name / "adapter_model.safetensors")
        deltas[name] = {}
        for key, down in state.items():
            if key.endswith(".lora_A.weight"):
                up = state[key.replace(".lora_A.", ".lora_B.")]
                target = key.removeprefix(PREFIX).replace(".lora_A.weight", ".weight")
                deltas[name][target] = loops.lora_delta(up.double().numpy(), down.double().numpy(), alpha, rank)
    return base, deltas


def tolerance(merged: Mapping[str, torch.Tensor]) -> float:
    dtypes = {tensor.dtype for tensor in merged.values() if tensor.is_floating_point()}
    assert len(dtypes) == 1
    return 1e-12 if dtypes == {torch.float64} else 1e-6


def gathered(merged: Any) -> dict[str, torch.Tensor]:
    return {name: merged[name] for name in merged}


def expected_dtype(pool: Path) -> torch.dtype:
    return read(pool / "base" / "model.safetensors")["shared.weight"].dtype


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_a_pool_of_adapters_is_summed_exactly(pool: Path, factor: float) -> None:
    """Task arithmetic on LoRA checkpoints is θ0 + λ Σ s·B·A, by loops over the saved factors."""
    base, deltas = folded_by_loops(pool)
    touched = {target for change in deltas.values() for target in change}
    assert len(touched) == 22
    models = open_modelpool({"type": "folder", "path": str(pool)})
    merged = gathered(fuse(TaskArithmetic(scaling_factor=factor), models))
    assert merged["shared.weight"].dtype == expected_dtype(pool)
    bound = tolerance(merged)
    for name, start in base.items():
        wanted = start.copy()
        for change in deltas.values():
            if name in change:
                wanted = wanted + factor * change[name]
        got = merged[name].double().numpy()
        assert float(abs(got - wanted).max()) <= bound * max(1.0, float(abs(wanted).max())), name
        if name not in touched:
            assert np.array_equal(got, start), name
    for name in touched:
        assert not np.array_equal(merged[name].double().numpy(), base[name]), name


def test_a_pool_of_adapters_is_averaged_exactly(pool: Path) -> None:
    """A module that one adapter leaves alone counts with the weight of the base."""
    base, deltas = folded_by_loops(pool)
    merged = gathered(fuse(SimpleAverage(), open_modelpool({"type": "folder", "path": str(pool)})))
    bound = tolerance(merged)
    experts = [{name: start + change.get(name, 0.0) for name, start in base.items()} for change in deltas.values()]
    for name, wanted in loops.mean(experts).items():
        got = merged[name].double().numpy()
        assert float(abs(got - wanted).max()) <= bound * max(1.0, float(abs(wanted).max())), name


def test_a_pool_of_adapters_against_the_merging_of_peft(pool: Path) -> None:
    """PEFT concatenates the three adapters (exact for plain LoRA) and merges the result into the base."""
    dtype = expected_dtype(pool)
    model = T5ForConditionalGeneration.from_pretrained(pool / "base", dtype=dtype)
    first, *others = RANKS_AND_ALPHAS
    adapted = PeftModel.from_pretrained(model, str(pool / first), adapter_name=first, autocast_adapter_dtype=False)
    for name in others:
        adapted.load_adapter(str(pool / name), adapter_name=name, autocast_adapter_dtype=False)
    merged_model = adapted.merge_and_unload(adapter_names=list(RANKS_AND_ALPHAS))
    expected = merged_model.state_dict()
    merged = gathered(fuse(TaskArithmetic(scaling_factor=1.0), open_modelpool({"type": "folder", "path": str(pool)})))
    bound = tolerance(merged)
    compared = 0
    for name, tensor in expected.items():
        if name in merged:
            compared += 1
            worst = float((merged[name].double() - tensor.double()).abs().max())
            assert worst <= bound * max(1.0, float(tensor.abs().max())), name
    assert compared >= len(read(pool / "base" / "model.safetensors"))


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_ties_on_a_pool_of_adapters(pool: Path, scope: str) -> None:
    """Trimming and election work on the folded weights: the gaps between magnitudes are far above the tolerance."""
    merged = gathered(
        fuse(
            TiesMerging(scaling_factor=0.6, threshold=5.0, scope=scope),
            open_modelpool({"type": "folder", "path": str(pool)}),
        )
    )
    bound = tolerance(merged)
    base, deltas = folded_by_loops(pool)
    experts = [{name: start + change.get(name, 0.0) for name, start in base.items()} for change in deltas.values()]
    expected = loops.ties(experts, base, scaling_factor=0.6, density=0.05, scope=scope)
    for name, wanted in expected.items():
        got = merged[name].double().numpy()
        assert float(abs(got - wanted).max()) <= bound * max(1.0, float(abs(wanted).max())), name
