"""Text examples for algorithms that look at data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.fitting import Batch, TaskData
from fusion_bench.taskpool import templates
from fusion_bench.taskpool.examples import Examples

if TYPE_CHECKING:
    import torch

    from fusion_bench.taskpool.session import LoadedTokenizer


def answers(task: str) -> tuple[str, ...]:
    """The texts that a task's answers are chosen from; of stsb the numbers from 0.0 to 5.0."""
    words = templates.template(task).targets
    return words if words is not None else tuple(f"{tenth / 10:.1f}" for tenth in range(51))


@dataclass(frozen=True)
class Tokens:
    """Special tokens of a model: what answers begin with, end with and are padded with."""

    start: int
    end: int
    pad: int


class TextData(TaskData):
    """Prompts of one task with the texts that may answer them, for an encoder-decoder language model.

    The classes are the answers: the log-probability of one is that of its tokens, the end token included. `logits` are
    those of the first token of the answer, over the vocabulary. With `labels` the model is shown the right answers.
    """

    def __init__(
        self,
        examples: Examples,
        tokenizer: LoadedTokenizer,
        tokens: Tokens,
        device: torch.device,
        facts: Mapping[str, Any],
        labels: bool,
    ) -> None:
        self.name = examples.task
        self.facts = {**facts, "labels": labels}
        self.labelled = labels
        self._ids = examples.ids
        self._tokens, self._device = tokens, device
        self._prompts = tokenizer.encode([text.prompt for text in examples.texts])
        choices = answers(examples.task)
        self._answers = [self._closed(row) for row in tokenizer.encode(choices)]
        places = {answer: place for place, answer in enumerate(choices)}
        self._gold = [places[text.target] for text in examples.texts]
        self.label_outputs = sorted({row[0] for row in self._answers})
        content = [
            [list(row) for row in self._prompts], self._answers, self._gold if labels else None, vars_of(tokens),
        ]  # fmt: skip
        self.digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def _closed(self, row: Sequence[int]) -> list[int]:
        return [*row] if row and row[-1] == self._tokens.end else [*row, self._tokens.end]

    def __len__(self) -> int:
        return len(self._prompts)

    def collate(self, places: Sequence[int]) -> Batch:
        import torch

        inputs, mask = self._padded([self._prompts[place] for place in places])
        held = {"input_ids": inputs, "attention_mask": mask.long()}
        masks = {"encoder": mask}
        labels = None
        if self.labelled:
            labels = torch.tensor([self._gold[place] for place in places], device=self._device)
            held["answer"], masks["decoder"] = self._padded([self._answers[self._gold[place]] for place in places])
        return Batch(held, tuple(self._ids[place] for place in places), labels, masks)

    def forward(self, module: Any, batch: Batch) -> None:
        if self.labelled:
            self._decoded(module, batch, self._encoded(module, batch), batch.inputs["answer"])
        else:
            self.logits(module, batch)

    def logits(self, module: Any, batch: Batch) -> torch.Tensor:
        import torch

        start = torch.full((len(batch), 1), self._tokens.start, device=self._device)
        out: torch.Tensor = module(
            encoder_outputs=self._encoded(module, batch),
            attention_mask=batch.inputs["attention_mask"],
            decoder_input_ids=start,
            use_cache=False,
        ).logits
        return out[:, 0]

    def log_probs(self, module: Any, batch: Batch) -> torch.Tensor:
        import torch

        encoded = self._encoded(module, batch)
        scores = []
        for answer in self._answers:
            rows = torch.tensor(answer, device=self._device).expand(len(batch), -1)
            scores.append(self._decoded(module, batch, encoded, rows).sum(1))
        return torch.stack(scores, 1).log_softmax(1)

    def gold_log_prob(self, module: Any, batch: Batch) -> torch.Tensor:
        if not self.labelled:
            raise ValueError(f"{self.name}: the right answers are not part of these data")
        found = self._decoded(module, batch, self._encoded(module, batch), batch.inputs["answer"])
        return (found * batch.masks["decoder"]).sum(1)

    def _encoded(self, module: Any, batch: Batch) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        inputs, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        return BaseModelOutput(last_hidden_state=module.get_encoder()(input_ids=inputs, attention_mask=mask)[0])

    def _decoded(self, module: Any, batch: Batch, encoded: Any, answer: torch.Tensor) -> torch.Tensor:
        """Log-probability of every token of the answers, each given those before it: rows x tokens."""
        import torch

        start = torch.full((len(answer), 1), self._tokens.start, device=self._device)
        logits = module(
            encoder_outputs=encoded,
            attention_mask=batch.inputs["attention_mask"],
            decoder_input_ids=torch.cat([start, answer[:, :-1]], 1),
            use_cache=False,
        ).logits
        found: torch.Tensor = logits.log_softmax(-1).gather(-1, answer.unsqueeze(-1)).squeeze(-1)
        return found

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        width = max(len(row) for row in rows)
        filled = torch.full((len(rows), width), self._tokens.pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for place, row in enumerate(rows):
            filled[place, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[place, : len(row)] = True
        return filled.to(self._device), mask.to(self._device)


def vars_of(tokens: Tokens) -> list[int]:
    """The special tokens, ready for JSON."""
    return [tokens.start, tokens.end, tokens.pad]
