"""Tiny models of several architectures with data to run them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fusion_bench.family import family_of
from fusion_bench.fit import module_fitting
from fusion_bench.fitting import Batch, Fitting, TaskData
from fusion_bench.tensor_data import TensorData


class Questions(TaskData):
    """Padded token sequences with a gold answer of two tokens, for encoder-decoder models."""

    classes = (5, 9, 11)

    def __init__(self, name: str, seed: int, examples: int = 6, length: int = 7, extra: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.name, self.digest, self.facts = name, f"questions/{seed}/{examples}/{length}", {}
        self._lengths = torch.randint(2, length + 1, (examples,), generator=generator)
        self._tokens = torch.randint(3, 200, (examples, length), generator=generator)
        self._labels = torch.randint(0, 3, (examples,), generator=generator)
        self._extra = extra
        self.forwards = 0

    def __len__(self) -> int:
        return len(self._labels)

    def collate(self, places: Sequence[int]) -> Batch:
        at = list(places)
        width = int(self._lengths[at].max()) + self._extra
        tokens = torch.nn.functional.pad(self._tokens[at], (0, self._extra))[:, :width]
        mask = torch.arange(width) < self._lengths[at][:, None]
        answers = torch.tensor(self.classes)[self._labels[at]]
        # Only the second half of the answers has a second token.
        second = torch.tensor([place % 2 for place in at]).bool()
        decoder = torch.stack([torch.zeros_like(answers), answers], 1)
        inputs = {"input_ids": tokens * mask, "attention_mask": mask.long(), "decoder_input_ids": decoder}
        real = torch.stack([torch.ones_like(second), second], 1)
        return Batch(inputs, tuple(at), self._labels[at], {"encoder": mask, "decoder": real})

    def forward(self, module: Any, batch: Batch) -> None:
        self._run(module, batch)

    def _run(self, module: Any, batch: Batch) -> torch.Tensor:
        self.forwards += 1
        logits: torch.Tensor = module(**batch.inputs).logits
        return logits

    def logits(self, module: Any, batch: Batch) -> torch.Tensor:
        return self._run(module, batch)[:, 0]

    def log_probs(self, module: Any, batch: Batch) -> torch.Tensor:
        return self.logits(module, batch)[:, list(self.classes)].log_softmax(-1)

    def gold_log_prob(self, module: Any, batch: Batch) -> torch.Tensor:
        logs = self._run(module, batch).log_softmax(-1)
        answers = batch.inputs["decoder_input_ids"][:, 1]
        first = logs[:, 0].gather(1, answers[:, None])[:, 0]
        return first + logs[:, 1, 1] * batch.masks["decoder"][:, 1]


def t5_fitting(tasks: dict[str, TaskData], dtype: torch.dtype = torch.float64, **fields: Any) -> Fitting:
    """For T5 of transformers, made live by its family."""
    from fusion_bench.progress import Progress

    def load(checkpoint: Any) -> torch.nn.Module:
        return family_of(checkpoint.config).load(checkpoint, dtype, torch.device("cpu"))

    streams = family_of({"model_type": "t5"}).token_stream
    return Fitting(tasks, load, Progress(enabled=False), token_stream=streams, **fields)


def gpt2(seed: int) -> Any:
    """GPT-2 with a head for two classes: linear layers stored in x out."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=40, n_positions=8, n_embd=8, n_layer=2, n_head=2, num_labels=2, pad_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64) * 0.1)
    return model


def sentences(name: str, seed: int, examples: int = 12) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 40, (examples, 6), generator=generator)
    return TensorData(name, {"input_ids": tokens}, torch.randint(0, 2, (examples,), generator=generator))


def mlp(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    linear = torch.nn.Linear
    return torch.nn.Sequential(linear(4, 6), torch.nn.Tanh(), linear(6, 3)).double()


def points(name: str, seed: int, examples: int = 20, width: int = 4) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, width, generator=generator, dtype=torch.float64)
    return TensorData(name, inputs, torch.randint(0, 3, (examples,), generator=generator))


def cached(module: torch.nn.Module, data: TaskData, cache: Path, identity: str = "one") -> Fitting:
    """A fitting of one model named as its data, which keeps what it finds."""
    fitting = module_fitting(module, {data.name: data})
    return replace(fitting, identity={data.name: {"model": identity}}, cache=cache)
