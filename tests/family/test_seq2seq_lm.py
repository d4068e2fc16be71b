"""A checkpoint as a live model: every value in its place, tied as the file says, answering as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5ForConditionalGeneration

from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import CheckpointError
from fusion_bench.family import family_of
from fusion_bench.family.seq2seq_lm import Seq2SeqLM

CPU = torch.device("cpu")
FAMILY = Seq2SeqLM()
Make = Callable[..., Any]
Inputs = tuple[torch.Tensor, torch.Tensor]


def load(checkpoint: MemoryCheckpoint, dtype: torch.dtype = torch.float32) -> Any:
    return FAMILY.load(checkpoint, dtype, CPU)


def plain(model: Any, inputs: Inputs, max_length: int = 10) -> torch.Tensor:
    ids, mask = inputs
    return model.generate(ids, attention_mask=mask, do_sample=False, num_beams=1, max_length=max_length)


@pytest.mark.parametrize("untied", [False, True])
def test_values_and_ties_are_the_files(make_t5: Make, untied: bool, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_t5(untied=untied)
    checkpoint = MemoryCheckpoint.of_module(model)
    loaded = load(checkpoint)
    assert (loaded.lm_head.weight is loaded.shared.weight) is not untied
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    assert sum(p.numel() for p in loaded.parameters()) == sum(info.numel for info in checkpoint.infos.values())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training
    assert capfd.readouterr().err == ""


def test_a_head_that_equals_the_embedding_stays_a_tensor_of_its_own(make_t5: Make) -> None:
    model = make_t5(untied=True)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.shared.weight)
    loaded = load(MemoryCheckpoint.of_module(model))
    assert loaded.lm_head.weight is not loaded.shared.weight
    # Else the next checkpoint of a sweep would write its head over its embedding.
    other = MemoryCheckpoint.of_module(make_t5(seed=1, untied=True))
    FAMILY.reload(loaded, other)
    assert torch.equal(loaded.shared.weight, other["shared.weight"])
    assert torch.equal(loaded.lm_head.weight, other["lm_head.weight"])


@pytest.mark.parametrize(
    ("config", "scaled"),
    [
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": True}, True),
    ],
)
def test_the_output_is_scaled_as_the_config_says(
    make_t5: Make, inputs: Inputs, config: dict[str, bool], scaled: bool
) -> None:
    model = make_t5(untied=True)
    values = {
        k: v for k, v in model.config.to_dict().items() if k not in ("tie_word_embeddings", "scale_decoder_outputs")
    }
    loaded = load(MemoryCheckpoint(model.state_dict(), {**values, **config}))
    ids, mask = inputs
    start = torch.zeros((len(ids), 1), dtype=torch.long)
    with torch.no_grad():
        hidden = loaded.decoder(
            input_ids=start, encoder_hidden_states=FAMILY.encode(loaded, ids, mask), encoder_attention_mask=mask
        )[0]
        logits = loaded(input_ids=ids, attention_mask=mask, decoder_input_ids=start).logits
    expected = hidden * 16**-0.5 if scaled else hidden
    torch.testing.assert_close(logits, expected @ loaded.lm_head.weight.T)


@pytest.mark.parametrize("untied", [False, True])
def test_saved_and_read_again(make_t5: Make, inputs: Inputs, tmp_path: Path, untied: bool) -> None:
    loaded = load(MemoryCheckpoint.of_module(make_t5(untied=untied)))
    loaded.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["tie_word_embeddings"] is not untied
    again = T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(plain(again, inputs), plain(loaded, inputs))
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_every_parameter_has_the_precision_that_is_asked_for(make_t5: Make, dtype: torch.dtype) -> None:
    model = make_t5(untied=True)
    loaded = load(MemoryCheckpoint.of_module(model), dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.to(dtype))


def test_half_precision_files_are_computed_with_in_full(make_t5: Make) -> None:
    half = MemoryCheckpoint.of_module(make_t5(untied=True).to(torch.bfloat16))
    assert {p.dtype for p in load(half).parameters()} == {torch.float32}


def test_names_of_file_and_architecture_must_agree_both_ways(make_t5: Make) -> None:
    checkpoint = MemoryCheckpoint.of_module(make_t5(untied=True))
    tensors = dict(checkpoint)
    tensors["encoder.block.0.extra"] = tensors.pop("encoder.final_layer_norm.weight")
    with pytest.raises(CheckpointError) as caught:
        load(MemoryCheckpoint(tensors, checkpoint.config))
    assert "'encoder.block.0.extra' has no place" in str(caught.value)
    assert "'encoder.final_layer_norm.weight'" in str(caught.value)
    assert "missing" in str(caught.value)


def test_shapes_must_agree(make_t5: Make) -> None:
    checkpoint = MemoryCheckpoint.of_module(make_t5())
    with pytest.raises(CheckpointError, match="has the shape") as caught:
        load(MemoryCheckpoint(dict(checkpoint), {**checkpoint.config, "d_ff": 20}))
    assert len(str(caught.value).splitlines()) == 1 + 4 * 3  # three matrices in each of four layers


def test_the_shared_embedding_may_be_stored_under_any_of_its_names(make_t5: Make) -> None:
    model = make_t5()
    tensors = dict(MemoryCheckpoint.of_module(model))
    [kept] = {
        "shared.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "lm_head.weight",
    } & tensors.keys()
    tensors["encoder.embed_tokens.weight"] = tensors.pop(kept)
    loaded = load(MemoryCheckpoint(tensors, model.config.to_dict()))
    assert torch.equal(loaded.shared.weight, model.shared.weight)
    assert loaded.lm_head.weight is loaded.shared.weight


def test_refilling_changes_every_value(make_t5: Make, inputs: Inputs) -> None:
    first, second = (MemoryCheckpoint.of_module(make_t5(seed=seed, untied=True)) for seed in (0, 1))
    loaded = load(first)
    addresses = [p.data_ptr() for p in loaded.parameters()]
    FAMILY.reload(loaded, second, threads=2)
    assert [p.data_ptr() for p in loaded.parameters()] == addresses
    for name in second:
        assert torch.equal(loaded.state_dict()[name], second[name]), name
    assert torch.equal(FAMILY.generate(loaded, *inputs), FAMILY.generate(load(second), *inputs))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("untied", [False, True])
def test_tokens_are_those_of_generate(make_t5: Make, inputs: Inputs, seed: int, untied: bool) -> None:
    model = make_t5(seed=seed, untied=untied, end=2.0)
    loaded = load(MemoryCheckpoint.of_module(model))
    expected = plain(model, inputs)
    assert torch.equal(FAMILY.generate(loaded, *inputs), expected)
    assert torch.equal(FAMILY.generate(loaded, *inputs, max_length=4), plain(model, inputs, max_length=4))


def test_rows_of_those_models_do_end_at_different_steps(make_t5: Make, inputs: Inputs) -> None:
    lengths: set[int] = set()
    for seed in range(6):
        answers = plain(make_t5(seed=seed, untied=True, end=2.0), inputs)
        lengths |= {int((row != 0).sum()) for row in answers}
    assert len(lengths) >= 4


def test_stops_when_every_row_has_ended(make_t5: Make, inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(MemoryCheckpoint.of_module(make_t5(untied=True)))
    steps = []
    inner = loaded.lm_head.forward

    def always_end(hidden: torch.Tensor) -> torch.Tensor:
        steps.append(hidden.shape[1])
        return torch.nn.functional.one_hot(torch.ones(hidden.shape[:2], dtype=torch.long), 48).float() + 0 * inner(
            hidden
        )

    monkeypatch.setattr(loaded.lm_head, "forward", always_end)
    assert FAMILY.generate(loaded, *inputs).tolist() == [[0, 1]] * 12
    # One position a step: keys and values of earlier ones are kept.
    assert steps == [1]


def test_settings_of_the_file_are_not_inherited(make_t5: Make, inputs: Inputs) -> None:
    model = make_t5(seed=2, untied=True)
    loaded = load(MemoryCheckpoint.of_module(model))
    expected = FAMILY.generate(loaded, *inputs)
    loaded.generation_config.num_beams = 4
    loaded.generation_config.repetition_penalty = 3.0
    loaded.generation_config.forced_eos_token_id = 5
    assert torch.equal(FAMILY.generate(loaded, *inputs), expected)
    assert not torch.equal(loaded.generate(inputs[0], attention_mask=inputs[1], max_length=10), expected)


@pytest.mark.parametrize("name", ["decoder_start_token_id", "eos_token_id", "pad_token_id"])
def test_missing_special_tokens_are_an_error(make_t5: Make, inputs: Inputs, name: str) -> None:
    loaded = load(MemoryCheckpoint.of_module(make_t5()))
    with pytest.raises(CheckpointError, match=name):
        FAMILY.check_generation({**loaded.config.to_dict(), name: None})
    setattr(loaded.config, name, None)
    with pytest.raises(CheckpointError, match=name):
        FAMILY.generate(loaded, *inputs)


def test_bart(inputs: Inputs) -> None:
    torch.manual_seed(0)
    sizes = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    config = BartConfig(
        vocab_size=48, d_model=16, max_position_embeddings=32, forced_eos_token_id=None, init_std=0.5, **sizes
    )
    model = BartForConditionalGeneration(config).eval()
    tensors = {k: v for k, v in MemoryCheckpoint.of_module(model).items() if k != "final_logits_bias"}
    loaded = load(MemoryCheckpoint(tensors, config.to_dict()))
    assert loaded.lm_head.weight is loaded.model.shared.weight
    assert torch.count_nonzero(loaded.final_logits_bias) == 0
    assert torch.equal(FAMILY.generate(loaded, *inputs), plain(model, inputs))


def test_progress_counts_bytes(make_t5: Make) -> None:
    checkpoint = MemoryCheckpoint.of_module(make_t5())
    seen: list[float] = []
    FAMILY.load(checkpoint, torch.float32, CPU, advance=seen.append)
    assert sum(seen) == sum(info.nbytes for info in checkpoint.infos.values())


def test_other_families_refuse_to_run(make_t5: Make) -> None:
    tensors = {"wte.weight": torch.zeros(2, 2)}
    for config, said in (({"model_type": "gpt2"}, "'gpt2'"), ({}, "without config.json")):
        checkpoint = MemoryCheckpoint(tensors, config)
        with pytest.raises(CheckpointError, match=said):
            family_of(config).load(checkpoint, torch.float32, CPU)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(MemoryCheckpoint(tensors, {"model_type": "t5", "feed_forward_proj": "a-b-c-d"}))
