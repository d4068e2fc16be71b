"""The same configurations through mergekit and through ours: equal tensors, equal sizes in the config."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peer_configs import CONFIGS
from safetensors.torch import load_file
from tiny_llama import VOCABULARY, llama

pytestmark = pytest.mark.peers

VARIABLE = "FUSION_BENCH_PEER_MERGEKIT"
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models and with the peer's results, all made in one process."""
    python = os.environ.get(VARIABLE, "")
    if not python or not Path(python).exists():
        pytest.skip(f"{VARIABLE} names no Python with tests/peers/mergekit.txt installed")
    folder = tmp_path_factory.mktemp("mergekit")
    base = llama(folder / "r0", None, seed=0)
    for number in (1, 2, 3):
        llama(folder / f"r{number}", None, seed=number, around=base)
    llama(folder / "near", None, seed=9, around={n: 0.9 * t for n, t in base.items()})
    llama(folder / "deep", None, 6, seed=4)
    for number in (0, 1):
        llama(folder / f"t{number}", None, seed=10 + number, tied=True)
        llama(folder / f"w{number}", None, seed=20 + number, words=[f"w{i}" for i in range(VOCABULARY - 3)])
    llama(folder / "h1", None, seed=7, dtype=torch.float16)
    llama(folder / "h2", None, seed=8, dtype=torch.bfloat16)
    _others(folder)
    (folder / "c").mkdir()
    for name, text in CONFIGS.items():
        (folder / "c" / f"{name}.yml").write_text(text)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [python, "-I", str(HERE / "run_mergekit_yaml.py"), str(folder)],
        env=environment, capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def _others(folder: Path) -> None:
    """Two random models each of architectures with other names of layers, or with two stacks of them."""
    import transformers as hf

    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": 2}
    t5 = hf.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    gpt2 = hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=3, n_head=2, bos_token_id=1, eos_token_id=2
    )
    bert = hf.BertConfig(**sizes, hidden_size=16, num_attention_heads=2, intermediate_size=24)
    made = {
        "t5": lambda: hf.T5ForConditionalGeneration(t5),
        "gpt2": lambda: hf.GPT2LMHeadModel(gpt2),
        "bert": lambda: hf.BertForSequenceClassification(bert),
    }
    for name, make in made.items():
        for number in (0, 1):
            torch.manual_seed(number)
            make().save_pretrained(folder / f"{name}_{number}")


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """By the names of the files; mergekit writes GPT-2 with a prefix."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found.update({name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()})
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_agreement(name: str, answered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_bench.cli.mergekit import run_mergekit

    monkeypatch.chdir(answered)
    assert run_mergekit([f"c/{name}.yml", f"ours/{name}", "progress=false"]) == 0
    refused = json.loads((answered / "errors.json").read_text())
    assert name not in refused, refused[name]
    ours, theirs = (_tensors(answered / who / name) for who in ("ours", "theirs"))
    assert sorted(ours) == sorted(theirs)
    narrow = 2**-8 if any(t.dtype == torch.bfloat16 for t in theirs.values()) else 1e-6
    for tensor, wanted in theirs.items():
        got = ours[tensor]
        assert got.dtype == wanted.dtype, tensor
        scale = max(1.0, float(wanted.abs().max()))
        assert float((got.double() - wanted.double()).abs().max()) <= narrow * scale, tensor
    configs = [json.loads((answered / who / name / "config.json").read_text()) for who in ("ours", "theirs")]
    for key in ("num_hidden_layers", "n_layer", "num_layers", "vocab_size"):
        assert configs[0].get(key) == configs[1].get(key)
