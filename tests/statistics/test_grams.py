"""Grams of layer inputs and of output gradients: sharing, padding, layouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from statistics_cases import Questions, gpt2, mlp, points, sentences, t5_fitting

from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.structure import Structure
from fusion_bench.family import family_of
from fusion_bench.fit import module_fitting
from fusion_bench.statistics import Statistics, input_grams, output_grams
from fusion_bench.tensor_data import TensorData


def structure_of(checkpoint: Any) -> Structure:
    return family_of(checkpoint.config).structure(checkpoint.config, checkpoint.infos)


def t5_grams(model: Any, data: Questions, batch_size: int = 4, count_padding: bool = False) -> Statistics:
    checkpoint = MemoryCheckpoint.of_module(model)
    structure = structure_of(checkpoint)
    return input_grams("q", checkpoint, t5_fitting({"q": data}), structure, 256, batch_size, count_padding)


def test_t5_layers_share_their_inputs(tiny: Any) -> None:
    model, data = tiny.t5(1).double(), Questions("q", 2)
    found = t5_grams(model, data)
    checkpoint = MemoryCheckpoint.of_module(model)
    assert set(found.index) == structure_of(checkpoint).linear
    block, other = "encoder.block.0.layer.", "encoder.block.1.layer."
    leaders = {found.index[f"{block}0.SelfAttention.{part}.weight"] for part in "qkv"}
    assert leaders == {f"{block}0.SelfAttention.q.weight"}
    assert len({found.index[f"{block}1.DenseReluDense.wi_{part}.weight"] for part in (0, 1)}) == 1
    assert found.index[f"{block}0.SelfAttention.o.weight"] == f"{block}0.SelfAttention.o.weight"
    assert found.index[f"{other}0.SelfAttention.q.weight"] == f"{other}0.SelfAttention.q.weight"
    crossed = {
        found.index[f"decoder.block.{at}.layer.1.EncDecAttention.{part}.weight"] for at in (0, 1) for part in "kv"
    }
    assert len(crossed) == 1
    # Two encoder and two decoder blocks: (qkv, o, wi, wo) and (qkv, o, q, o, wi, wo), the cross-attention's k and v.
    assert len(found.tensors) == 2 * 4 + 2 * 6 + 1


def test_every_layer_by_hooks_of_its_own(tiny: Any) -> None:
    """Without any sharing, one example at a time, padding cut away: the same matrices."""
    model, data = tiny.t5(1).double(), Questions("q", 2)
    found = t5_grams(model, data)
    rows: dict[str, list[torch.Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: rows.setdefault(name, []).append(given[0][0]))
        for name, layer in model.named_modules()
        if f"{name}.weight" in found.index
    ]
    with torch.no_grad():
        for place in range(len(data)):
            batch = data.collate([place])
            count = int(batch.masks["decoder"].sum())
            inputs = {**batch.inputs, "decoder_input_ids": batch.inputs["decoder_input_ids"][:, :count]}
            model(**inputs)
    for handle in handles:
        handle.remove()
    for name, each in rows.items():
        stacked = torch.cat(each)
        torch.testing.assert_close(found[f"{name}.weight"], stacked.T @ stacked / len(stacked), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("batch_size", [1, 6])
def test_padding_changes_nothing(tiny: Any, batch_size: int) -> None:
    model = tiny.t5(1).double()
    plain, more = t5_grams(model, Questions("q", 2), 3), t5_grams(model, Questions("q", 2, extra=5), batch_size)
    for name in plain.index:
        torch.testing.assert_close(plain[name], more[name], rtol=1e-8, atol=1e-12)
    counted = t5_grams(model, Questions("q", 2, extra=5), 6, count_padding=True)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert not torch.allclose(counted[name], plain[name], rtol=1e-2)


def test_gpt2_layers_stored_the_other_way_round() -> None:
    model, data = gpt2(1), sentences("s", 2)
    checkpoint = MemoryCheckpoint.of_module(model)
    structure = structure_of(checkpoint)
    found = input_grams("s", checkpoint, module_fitting(model, {"s": data}), structure)
    assert found["transformer.h.0.mlp.c_fc.weight"].shape == (8, 8)
    assert found["transformer.h.0.mlp.c_proj.weight"].shape == (32, 32)
    outputs = output_grams("s", checkpoint, module_fitting(model, {"s": data}), structure)
    assert outputs["transformer.h.0.mlp.c_fc.weight"].shape == (32, 32)
    assert "transformer.h.0.mlp.c_fc.weight" in structure.transposed


def test_output_gradients_of_t5(tiny: Any) -> None:
    """Against the gradients of offsets added to what a layer says."""
    model, data = tiny.t5(1).double(), Questions("q", 2)
    checkpoint = MemoryCheckpoint.of_module(model)
    fitting = t5_fitting({"q": data})
    found = output_grams("q", checkpoint, fitting, structure_of(checkpoint))
    for name in ("encoder.block.1.layer.0.SelfAttention.v", "decoder.block.0.layer.1.EncDecAttention.k"):
        rows = []
        for place in range(len(data)):
            offsets: list[torch.Tensor] = []

            def hook(module: Any, given: Any, output: torch.Tensor, held: list[torch.Tensor] = offsets) -> torch.Tensor:
                held.append(torch.zeros_like(output, requires_grad=True))
                return output + held[0]

            handle = model.get_submodule(name).register_forward_hook(hook)
            batch = data.collate([place])
            gold = data.gold_log_prob(model, batch)[0]
            rows.append(torch.autograd.grad(gold, offsets)[0][0])
            handle.remove()
        stacked = torch.cat(rows)
        assert float(stacked.abs().sum()) > 0
        torch.testing.assert_close(found[f"{name}.weight"], stacked.T @ stacked / len(stacked), rtol=1e-7, atol=1e-14)
    assert found.record["flops"] > 0


def test_output_grams_over_all_classes() -> None:
    """B = sum over examples and classes of p g g^T / n, here from one backward a class."""
    module, data = mlp(1), points("p", 2)
    structure = Structure(linear=frozenset({"0.weight", "2.weight"}))
    checkpoint = MemoryCheckpoint.of_module(module)
    found = output_grams("p", checkpoint, module_fitting(module, {"p": data}), structure, "true")
    wanted = torch.zeros(6, 6, dtype=torch.float64)
    bias = module[0].bias  # type: ignore[index]
    for place in range(len(data)):
        logs = data.log_probs(module, data.collate([place]))[0]
        for log in logs:
            gradient = torch.autograd.grad(log, bias, retain_graph=True)[0]  # type: ignore[arg-type]
            wanted += log.detach().exp() * torch.outer(gradient, gradient) / len(data)
    torch.testing.assert_close(found["0.weight"], wanted, rtol=1e-8, atol=1e-12)


class Routed(torch.nn.Module):
    """Which layer runs, and whether two layers are given one tensor, depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(4, 3) for _ in range(3))
        self.unused = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.a(x)
        if float(x[0, 0]) > 0:
            return out + self.b(x)
        return out + self.b(x + 1) + self.c(x)


def test_uses_that_change_from_batch_to_batch() -> None:
    torch.manual_seed(0)
    module = Routed().double()
    data = points("p", 1)
    structure = Structure(linear=frozenset({"a.weight", "b.weight", "c.weight", "unused.weight"}))
    found = input_grams("p", MemoryCheckpoint.of_module(module), module_fitting(module, {"p": data}), structure, 20, 1)
    assert set(found.index) == {"a.weight", "b.weight", "c.weight"}
    x = data.collate(range(20)).inputs["x"]
    first = x[:, :1] > 0
    shifted = torch.where(first, x, x + 1)
    torch.testing.assert_close(found["a.weight"], x.T @ x / 20)
    torch.testing.assert_close(found["b.weight"], shifted.T @ shifted / 20)
    chosen = x[~first[:, 0]]
    assert 0 < len(chosen) < 20
    torch.testing.assert_close(found["c.weight"], chosen.T @ chosen / len(chosen))


def test_one_layer_that_runs_twice() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(torch.tanh(self.layer(x)))
            return out

    torch.manual_seed(1)
    module, data = Twice().double(), points("p", 1)
    structure = Structure(linear=frozenset({"layer.weight"}))
    found = input_grams("p", MemoryCheckpoint.of_module(module), module_fitting(module, {"p": data}), structure)
    x = data.collate(range(20)).inputs["x"]
    rows = torch.cat([x, torch.tanh(module.layer(x)).detach()])
    torch.testing.assert_close(found["layer.weight"], rows.T @ rows / 40)


def test_fused_projections_have_no_gram() -> None:
    class Attending(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x[:, None, :]
            out: torch.Tensor = self.head(self.attention(x, x, x, need_weights=False)[0][:, 0])
            return out

    module, data = Attending().double(), points("p", 1)
    names = {"attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}
    structure = Structure(linear=frozenset(names))
    found = input_grams("p", MemoryCheckpoint.of_module(module), module_fitting(module, {"p": data}), structure)
    assert set(found.index) == {"head.weight"}


def test_cost_of_grams_by_hand() -> None:
    """20 examples: 84 operations forward, 2 d^2 a row of width 4 and 6; one example more for finding the uses."""
    module, data = mlp(0), points("p", 1, 20)
    structure = Structure(linear=frozenset({"0.weight", "2.weight"}))
    found = input_grams("p", MemoryCheckpoint.of_module(module), module_fitting(module, {"p": data}), structure)
    assert found.record["flops"] == 21 * 84 + 20 * 2 * (16 + 36)
    assert found.record["examples"] == 20


def test_tokens_are_recorded_by_stream(tiny: Any) -> None:
    data = Questions("q", 2)
    record = t5_grams(tiny.t5(1).double(), data).record
    batch = data.collate(range(len(data)))
    assert record["tokens"] == {stream: int(mask.sum()) for stream, mask in batch.masks.items()}
    assert record["rows"]["decoder.block.0.layer.1.EncDecAttention.k.weight"] == record["tokens"]["encoder"]


def test_streams_that_do_not_fit_are_told(tiny: Any) -> None:
    model, data = tiny.t5(1).double(), Questions("q", 2)
    checkpoint = MemoryCheckpoint.of_module(model)
    fitting = replace(t5_fitting({"q": data}), token_stream=lambda layer: "decoder")
    record = input_grams("q", checkpoint, fitting, structure_of(checkpoint)).record
    assert "encoder.block.0.layer.0.SelfAttention.q.weight" in record["padding_not_told_apart"]


def test_modules_whose_names_are_not_those_of_the_file() -> None:
    """What a family notes of names it changed is followed, by layers and by parameters alike."""
    from fusion_bench.statistics import diagonal_fisher

    module, data = mlp(0), points("p", 1, 20)
    names = {"0.weight": "first.w", "0.bias": "first.b", "2.weight": "last.w", "2.bias": "last.b"}
    checkpoint = MemoryCheckpoint({names[name]: value for name, value in module.state_dict().items()})

    def load(given: Any) -> torch.nn.Module:
        made: Any = mlp(5)
        made.load_state_dict({inside: given[stored] for inside, stored in names.items()})
        made.fusion_bench_checkpoint_names = names
        return made.requires_grad_(False)  # type: ignore[no-any-return]

    renamed = replace(module_fitting(module, {"p": data}), load=load)
    plain = module_fitting(module, {"p": data})
    given = MemoryCheckpoint.of_module(module)
    linear = Structure(linear=frozenset({"0.weight", "2.weight"}))
    wanted, fisher = input_grams("p", given, plain, linear), diagonal_fisher("p", given, plain)
    found = input_grams("p", checkpoint, renamed, Structure(linear=frozenset({"first.w", "last.w"})))
    assert set(found.index) == {"first.w", "last.w"}
    assert torch.equal(found["last.w"], wanted["2.weight"])
    assert torch.equal(diagonal_fisher("p", checkpoint, renamed)["first.b"], fisher["0.bias"])


def test_the_tower_of_clip() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).eval().double()
    pixels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    heads = torch.randn(16, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    data = TensorData("p", {"pixel_values": pixels}, [0, 1, 2] * 2, lambda m, x: m(**x).pooler_output @ heads)
    checkpoint = MemoryCheckpoint.of_module(tower)
    structure = structure_of(checkpoint)
    found = input_grams("p", checkpoint, module_fitting(tower, {"p": data}), structure)
    assert set(found.index) == structure.linear
    assert len(found.tensors) == 2 * 4
    (leader,) = {found.index[name] for name in found.index if "layers.1.self_attn." in name and "out" not in name}
    assert leader.endswith(("q_proj.weight", "k_proj.weight"))
    # Five tokens an image: four patches and the class.
    assert found.record["rows"][leader] == 6 * 5
