"""What every test may count on: offline, caches of its own, a command to run, a Hub cache under the published names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Before anything reads them: huggingface_hub looks at its environment once, when it is imported.
_HOME = tempfile.mkdtemp(prefix="fusion_bench-tests-")
os.environ["HF_HOME"] = str(Path(_HOME) / "hf")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FUSION_BENCH_CACHE"] = str(Path(_HOME) / "answers")
os.environ.pop("HF_HUB_CACHE", None)
os.environ.pop("FUSION_BENCH_TRACEBACK", None)

import pytest  # noqa: E402

TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MINI = Path(__file__).resolve().parent.parent / "src" / "fusion_bench" / "zoo" / "mini_t5_glue_lora16"


@pytest.fixture(scope="session", autouse=True)
def _remove_home() -> Iterator[None]:
    yield
    import shutil

    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny models run slower on several threads, above all beside other test processes."""
    import torch

    torch.set_num_threads(1)


@dataclass
class Ran:
    """What a command left: exit status, both outputs."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `fusion_bench` with the given arguments in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ran:
        from fusion_bench.cli import main

        capsys.readouterr()
        status = main(list(arguments))
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


def tiny_t5(seed: int = 0, untied: bool = True) -> Any:
    """A random T5 that the tokenizer of the embedded pool fits, with an output layer of its own where `untied`."""
    import torch
    from transformers import AutoConfig, T5Config, T5ForConditionalGeneration

    vocabulary = AutoConfig.from_pretrained(MINI / "base").vocab_size
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    if untied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(vocabulary, 16) * 0.05)
        model.config.tie_word_embeddings = False
    return model


def perturbed(model: Any, seed: int, size: float = 0.02) -> Any:
    """A copy whose every parameter moved a little: a fine-tune."""
    import copy

    import torch

    expert = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return expert


def save_lora(model: Any, folder: Path, seed: int, base: str) -> None:
    """A LoRA r=16 on q and v with random factors, as the published adapters are configured."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    adapted = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder)


def snapshot(name: str) -> Path:
    """The folder of a model in the Hub cache, made as the Hub's client lays it out."""
    repo = Path(os.environ["HF_HOME"]) / "hub" / ("models--" + name.replace("/", "--"))
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(COMMIT)
    folder = repo / "snapshots" / COMMIT
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def hub() -> Path:
    """A Hub cache with tiny models under the published names of the Flan-T5 pools."""
    import shutil

    for size in ("base", "large"):
        base = tiny_t5(seed=1)
        name = f"google/flan-t5-{size}"
        folder = snapshot(name)
        base.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(MINI / "base" / file, folder / file)
        for number, task in enumerate(TASKS):
            save_lora(base, snapshot(f"tanganke/flan-t5-{size}_glue-{task}_lora-16"), number, name)
            if size == "base":
                perturbed(base, number).save_pretrained(snapshot(f"tanganke/flan-t5-base_glue-{task}"))
    return Path(os.environ["HF_HOME"]) / "hub"


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few examples of every task in the layout of the Hub's `glue`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fusion_bench.zoo.text import tasks

    root = tmp_path_factory.mktemp("data")
    for task in TASKS:
        split = "validation_matched" if task == "mnli" else "validation"
        (root / "glue" / task).mkdir(parents=True)
        rows = tasks.load(task, "validation")[:6]
        pq.write_table(pa.Table.from_pylist(rows), root / "glue" / task / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture
def tiny() -> SimpleNamespace:
    """Makers of tiny models: `t5(seed, untied)`, `lora(model, folder, seed, base)`, `perturbed(model, seed)`."""
    return SimpleNamespace(t5=tiny_t5, lora=save_lora, perturbed=perturbed)


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder pool of full models: base/, a/, b/, c/."""
    root = tmp_path_factory.mktemp("pool")
    base = tiny_t5()
    base.save_pretrained(root / "base")
    for number, name in enumerate("abc"):
        perturbed(base, number).save_pretrained(root / name)
    return root
