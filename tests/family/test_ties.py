"""Which names a config ties, and what a file's own names make of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import transformers

from fusion_bench.family import Ties, family_of
from fusion_bench.family.generic import GenericFamily
from fusion_bench.family.seq2seq_lm import MODEL_TYPES, Seq2SeqLM

INPUTS = {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"}


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize(
    "config", [{}, {"tie_word_embeddings": False}, {"tie_word_embeddings": True, "scale_decoder_outputs": False}]
)
def test_t5_shares_its_inputs_always_and_its_output_where_the_file_has_none(kind: str, config: dict[str, bool]) -> None:
    ties = family_of({"model_type": kind, **config}).aliases({"model_type": kind, **config})
    assert ties == Ties(INPUTS, {"lm_head.weight": "shared.weight"})
    assert ties.resolve({"shared.weight"}) == {**INPUTS, "lm_head.weight": "shared.weight"}
    assert ties.resolve({"shared.weight", "lm_head.weight"}) == INPUTS
    # A pickle stores every name; the copies of the inputs go, the output layer stays.
    assert ties.resolve({"shared.weight", "lm_head.weight", *INPUTS}) == INPUTS


def test_whichever_name_the_file_keeps_is_the_stored_one() -> None:
    ties = Ties(INPUTS, {"lm_head.weight": "shared.weight"})
    kept = "encoder.embed_tokens.weight"
    others = ("shared.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    assert ties.resolve({kept, "x"}) == dict.fromkeys(others, kept)
    assert ties.resolve({"lm_head.weight"}) == dict.fromkeys(["shared.weight", *INPUTS], "lm_head.weight")
    assert ties.resolve({"x"}) == {}


def test_bart_like() -> None:
    aliases = family_of({"model_type": "bart"}).aliases({"model_type": "bart"})
    assert aliases.always == {f"model.{name}": "model.shared.weight" for name in INPUTS}
    assert aliases.when_absent == {"lm_head.weight": "model.shared.weight"}
    untied = {"model_type": "bart", "tie_word_embeddings": False}
    assert family_of(untied).aliases(untied).always == {}
    apart = {"model_type": "marian", "share_encoder_decoder_embeddings": False}
    assert family_of(apart).aliases(apart) == Ties({}, {"lm_head.weight": "model.decoder.embed_tokens.weight"})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt2"}, {"lm_head.weight": "transformer.wte.weight"}),
        ({"model_type": "llama", "tie_word_embeddings": True}, {"lm_head.weight": "model.embed_tokens.weight"}),
        ({"model_type": "llama", "tie_word_embeddings": False}, {}),
        ({"model_type": "bert"}, {}),
        ({}, {}),
    ],
)
def test_other_families_know_their_heads(config: dict[str, object], expected: dict[str, str]) -> None:
    family = family_of(config)
    assert isinstance(family, GenericFamily)
    assert family.aliases(config) == Ties({}, expected)
    assert family.aliases(config).resolve({"h.0.weight"}) == {}


def test_every_model_type_is_one_of_transformers() -> None:
    known = {config.model_type for config in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING}
    assert known >= MODEL_TYPES


@pytest.mark.parametrize("kind", ["bart", "mbart", "pegasus", "m2m_100", "led", "blenderbot"])
def test_ties_are_those_that_transformers_declares(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind)
    model = transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        made = model(config)
    names: dict[int, list[str]] = {}
    for name, parameter in made.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    groups = {frozenset(group) for group in names.values() if len(group) > 1}
    ties = Seq2SeqLM().aliases({"model_type": kind})
    told = {**ties.always, **ties.when_absent}
    assert groups == {frozenset({*told, *told.values()})}


def test_needs_no_torch() -> None:
    code = (
        "import sys; from fusion_bench.family import family_of; c = {'model_type': 't5'};"
        "family_of(c).aliases(c).resolve({'shared.weight'});"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
