"""What mergekit was seen to do with its YAML, on models of constant tensors: levels, gradients, filters, slices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fusion_bench.errors import AlignmentError, CheckpointError, ConfigError

Merged = Callable[..., dict[str, torch.Tensor]]
PLAIN = "parameters: {normalize: false}\n"
LINEAR = """\
merge_method: linear
models:
  - model: a
    parameters: {weight: 1}
  - model: b
    parameters: {weight: %s}
"""
Q = "self_attn.q_proj.weight"


def constant(tensor: torch.Tensor) -> float:
    assert (tensor == tensor.flatten()[0]).all()
    return float(tensor.flatten()[0])


def layers(found: dict[str, torch.Tensor], part: str = Q) -> list[float]:
    count = len({name for name in found if name.endswith(part)})
    return [constant(found[f"model.layers.{i}.{part}"]) for i in range(count)]


def outside(found: dict[str, torch.Tensor]) -> list[float]:
    """Embedding, final norm, head."""
    return [constant(found[f"{name}.weight"]) for name in ("model.embed_tokens", "model.norm", "lm_head")]


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("0.25", [0.25] * 4),
        ("[0, 1]", [0, 1 / 3, 2 / 3, 1]),
        ("[0, 1, 0.5]", [0, 2 / 3, 5 / 6, 0.5]),
        ("[{filter: layers.1., value: 9}, {value: [1, 0]}]", [1, 9, 1 / 3, 0]),
    ],
)
def test_gradients(merged: Merged, weight: str, expected: list[float]) -> None:
    found = merged(LINEAR % weight + PLAIN)
    assert layers(found) == pytest.approx(expected)
    assert outside(found) == pytest.approx([expected[0] if "filter" not in weight else 1] * 3)


def test_levels(merged: Merged) -> None:
    """Source before slice before top; a level of which no filter fits is passed over."""
    text = """\
merge_method: linear
slices:
  - sources: [{model: b, layer_range: [0, 2], parameters: {weight: 0.1}}]
    parameters: {weight: 0.2}
  - sources: [{model: b, layer_range: [0, 1]}]
    parameters: {weight: [{filter: q_proj, value: 0.3}]}
  - sources: [{model: b, layer_range: [3, 4]}]
parameters: {weight: 0.4, normalize: false}
"""
    found = merged(text)
    assert layers(found) == pytest.approx([0.1, 0.1, 0.3, 0.4])
    assert layers(found, "mlp.up_proj.weight") == pytest.approx([0.1, 0.1, 0.4, 0.4])
    assert outside(found) == pytest.approx([0.1, 0.4, 0.4])


def test_gradients_begin_anew_in_each_slice(merged: Merged) -> None:
    text = "merge_method: linear\nslices:\n" + "".join(
        f"  - sources: [{{model: b, layer_range: [{start}, {stop}]}}]\n" for start, stop in ((0, 3), (2, 3), (1, 3))
    )
    found = merged(text + "parameters: {weight: [0, 1], normalize: false}")
    assert layers(found) == pytest.approx([0, 0.5, 1, 0, 0, 1])
    assert outside(found) == [0, 0, 0]


def test_filters_of_sources_see_their_own_numbers(merged: Merged) -> None:
    """A parameter that each input has is looked up by the name in the input, a shared one by that in the result."""
    text = """\
merge_method: task_arithmetic
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [2, 4], parameters: {weight: [{filter: layers.2., value: 5}, {value: 1}]}}
parameters:
  lambda: [{filter: layers.1., value: 10}, {value: 1}]
"""
    found = merged(text)
    assert layers(found) == [5, 10]
    assert outside(found) == [1, 1, 1]


def test_slices(merged: Merged, place: Path) -> None:
    """Embeddings come from the first slice, the norm and the head from the last; the config follows."""
    text = """\
merge_method: passthrough
slices:
  - sources: [{model: b, layer_range: [0, 3], parameters: {scale: 0.5}}]
  - sources: [{model: deep, layer_range: [3, 6]}]
  - sources: [{model: c, layer_range: [0, 1]}]
"""
    found = merged(text)
    assert layers(found) == [0.5, 0.5, 0.5, 3, 3, 3, 2]
    assert outside(found) == [0.5, 2, 2]
    assert json.loads((place / "out" / "config.json").read_text())["num_hidden_layers"] == 7


def test_lists_by_layer_follow(place: Path, merged: Merged) -> None:
    from tiny_llama import llama

    llama(place / "x", None, seed=1, layer_types=["full", "sliding", "full", "half"])
    ranges = ([2, 4], [0, 2], [1, 2])
    text = "merge_method: passthrough\nslices:\n" + "".join(
        f"  - sources: [{{model: x, layer_range: {each}}}]\n" for each in ranges
    )
    merged(text)
    written = json.loads((place / "out" / "config.json").read_text())
    assert written["layer_types"] == ["full", "half", "full", "sliding", "sliding"]


def test_base_as_ordinary_input(merged: Merged) -> None:
    models = "models:\n  - {model: b, parameters: {weight: 1}}\n  - {model: c, parameters: {weight: 1}}\n"
    with pytest.raises(ConfigError, match="weight is missing for base_model"):
        merged("merge_method: linear\nbase_model: d\n" + models)
    found = merged("merge_method: linear\nbase_model: d\n" + models + "parameters: {weight: 1}\n")
    assert outside(found) == pytest.approx([7 / 3] * 3)


def test_slerp_runs_from_the_base(merged: Merged) -> None:
    text = "merge_method: slerp\nbase_model: c\nmodels: [{model: b}, {model: c}]\nparameters: {t: %s}\n"
    assert outside(merged(text % 0)) == [2, 2, 2]
    assert outside(merged(text % 1)) == [1, 1, 1]


def test_ties_of_constants(merged: Merged) -> None:
    text = """\
merge_method: ties
base_model: a
models: [{model: b, parameters: {weight: 1}}, {model: c, parameters: {weight: 0.5}}]
parameters: {lambda: 2}
"""
    assert outside(merged(text)) == pytest.approx([8 / 3] * 3)
    assert outside(merged(text + "dtype: float32\n", "threads=2")) == pytest.approx([8 / 3] * 3)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (LINEAR % "[{filter: self_attn, value: 1}]", ConfigError, "models[1].parameters.weight is missing (b)"),
        (LINEAR % "-1", ConfigError, "weight: 1, -1 sum to 0"),
        (LINEAR.replace("model: b", "model: deep") % 1, AlignmentError, "model.layers.4"),
        (LINEAR.replace("model: b", "model: nowhere/at/all") % 1, CheckpointError, "nowhere/at/all"),
        ("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]", ConfigError, "parameters.t is missing"),
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: [0, 2]}",
            ConfigError,
            "slerp: method.t=2.0: out of range",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 5]}]}]",
            ConfigError,
            "slices[0].sources[0].layer_range=[0, 5]: the model has 4 layers",
        ),
        (
            "merge_method: multislerp\nmodels: [{model: b}, {model: c}]\n"
            "parameters: {weight: 1, normalize_weights: false}",
            ConfigError,
            "normalize_weights: false with weights that sum to 2 is not supported",
        ),
    ],
)
def test_refused_before_work(merged: Merged, place: Path, text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        merged(text)
    assert words in str(caught.value), caught.value
    assert not (place / "out").exists()


def test_dtypes(place: Path, merged: Merged) -> None:
    """Without dtype, what holds all inputs; dtype is of the inputs and of the result, out_dtype of the result alone."""
    from tiny_llama import llama

    third = torch.tensor(1 / 3, dtype=torch.bfloat16)
    llama(place / "r16", float(third), dtype=torch.bfloat16)
    llama(place / "h16", 1.0, dtype=torch.float16)
    text = "merge_method: linear\nmodels: [{model: r16}, {model: %s}]\nparameters: {weight: 1}\n"
    for other, keys, dtype in (
        ("b", "", torch.float32),
        ("h16", "", torch.float32),
        ("b", "dtype: bfloat16", torch.bfloat16),
        ("b", "dtype: float64", torch.float64),
        ("b", "dtype: float32\nout_dtype: float16", torch.float16),
    ):
        found = merged(text % other + keys)
        assert {tensor.dtype for tensor in found.values()} == {dtype}
        expected = (third.double() + 1) / 2
        assert constant(found["lm_head.weight"]) == pytest.approx(float(expected.to(dtype)), abs=1e-7)
        written = json.loads((place / "out" / "config.json").read_text())
        assert written["dtype"] == str(dtype).removeprefix("torch.")


def test_a_tied_model_lends_its_embedding_as_head(place: Path, merged: Merged) -> None:
    from tiny_llama import llama

    llama(place / "t", 7.0, tied=True)
    text = """\
merge_method: passthrough
slices: [{sources: [{model: b, layer_range: [0, 2]}]}, {sources: [{model: t, layer_range: [0, 2]}]}]
"""
    found = merged(text)
    assert outside(found) == [1, 7, 7]
    assert json.loads((place / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    llama(place / "u", 8.0, tied=True)
    found = merged(text.replace("model: b", "model: u"))
    assert "lm_head.weight" not in found
    assert constant(found["model.embed_tokens.weight"]) == 8


def test_stacks_have_depths_of_their_own() -> None:
    from fusion_bench.checkpoint.base import TensorInfo
    from fusion_bench.family.layers import structure_of
    from fusion_bench.mergekit.parameters import depths

    names = ["shared.weight", *(f"{s}.block.{i}.wi" for s, n in (("encoder", 2), ("decoder", 3)) for i in range(n))]
    blocks = structure_of({}, {name: TensorInfo("F32", (2, 2)) for name in names}).blocks
    assert list(depths(blocks, names).values()) == [0, 0, 1, 0, 0.5, 1]


def test_dare_keeps_the_l1_norm(place: Path, merged: Merged) -> None:
    from tiny_llama import llama

    llama(place / "x", None, seed=1)
    text = "merge_method: dare_linear\nbase_model: a\nmodels: [{model: x}, {model: b}]\nparameters: "
    whole = merged(text + "{weight: [{filter: nothing, value: 0}, {value: 1}]}")
    models = "models: [{model: x, parameters: {weight: 1, density: 0.5}}, {model: b, parameters: {weight: 0}}]"
    text = text.replace("models: [{model: x}, {model: b}]", models)
    found = merged(text + "{}")
    again = merged(text + "{}", "threads=2")
    other = merged(text + "{}", "seed=1")
    name = "model.layers.0.mlp.up_proj.weight"
    kept = (whole[name] - 1) * (found[name] != 0)
    assert 0.3 < float((found[name] != 0).float().mean()) < 0.7
    assert torch.allclose(found[name], kept * (whole[name] - 1).abs().sum() / kept.abs().sum(), atol=1e-5)
    assert torch.equal(found[name], again[name])
    assert not torch.equal(found[name], other[name])
