"""A tiny model, a tokenizer and data files for evaluating it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.taskpool import open_taskpool
from fusion_bench.taskpool.text_generation import GlueTextGeneration

ROWS: dict[str, list[dict[str, Any]]] = {
    "cola": [
        {"sentence": f"the {word} {'slept' if i % 3 else 'sleep'}", "label": int(i % 3 > 0)}
        for i, word in enumerate(["cat", "dog", "cow", "hen", "fox", "owl", "ant"])
    ],
    "mnli": [{"premise": f"p {i} " * (i + 1), "hypothesis": f"h {i}", "label": i % 3} for i in range(7)],
    "mrpc": [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2} for i in range(5)],
    "qnli": [{"question": f"q {i} ?", "sentence": f"s {i}", "label": i % 2} for i in range(5)],
    "qqp": [{"question1": f"a {i} ?", "question2": f"b {i} ?", "label": i % 2} for i in range(5)],
    "rte": [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2} for i in range(5)],
    "sst2": [{"sentence": f"fine film {i}", "label": i % 2} for i in range(5)],
    "stsb": [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": 1.0 + 0.55 * i} for i in range(6)],
}


def write_task(folder: Path, task: str, rows: Sequence[Mapping[str, Any]], split: str | None = None) -> Path:
    """One parquet file in Hub layout, with the index column of GLUE."""
    split = split or ("validation_matched" if task == "mnli" else "validation")
    file = folder / "glue" / task / f"{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist([{**row, "idx": 100 + i} for i, row in enumerate(rows)]), file)
    return file


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSION_BENCH_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Small data under every task's columns."""
    folder = tmp_path / "data"
    for task, rows in ROWS.items():
        write_task(folder, task, rows)
    return folder


@pytest.fixture
def write() -> Callable[..., Path]:
    return write_task


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with one token for each character: every prompt and answer makes the round trip."""
    characters = [chr(code) for code in range(32, 127)]
    inner = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", *characters])}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    inner.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture
def make_checkpoint() -> Callable[..., MemoryCheckpoint]:
    """A tiny untied T5 over that tokenizer, with random weights that sometimes end an answer."""

    def make(seed: int = 0, **config: Any) -> MemoryCheckpoint:
        torch.manual_seed(seed)
        shape = {"vocab_size": 98, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
        made = T5Config(**{**shape, **config}, decoder_start_token_id=0, tie_word_embeddings=False)
        model = T5ForConditionalGeneration(made)
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
        with torch.no_grad():
            model.lm_head.weight[1] *= 2
        return MemoryCheckpoint.of_module(model)

    return make


@pytest.fixture
def real_data() -> Path:
    """The folder of the real data sets; skips where there is none."""
    places = [os.environ.get("FUSION_BENCH_DATA"), Path(__file__).parents[3] / "shared" / "data"]
    for place in places:
        if place and (Path(place) / "glue" / "cola").is_dir():
            return Path(place)
    pytest.skip("no real GLUE: FUSION_BENCH_DATA names no folder with glue/, and there is none in ../shared/data")


@pytest.fixture
def pool(data_dir: Path, tokenizer_folder: Path) -> Callable[..., GlueTextGeneration]:
    """Opens a text pool over the small data; keywords are its fields."""

    def opened(**spec: Any) -> GlueTextGeneration:
        values = {"type": "glue_text_generation", "data_dir": str(data_dir), "tokenizer": str(tokenizer_folder), **spec}
        made = open_taskpool(values)
        assert isinstance(made, GlueTextGeneration)
        return made

    return opened


@pytest.fixture
def without_times() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The part of a report that has to repeat."""

    def stripped(report: dict[str, Any]) -> dict[str, Any]:
        return {
            task: {k: v for k, v in score.items() if k not in ("seconds", "cached")}
            if isinstance(score, dict)
            else score
            for task, score in report.items()
        }

    return stripped
