"""Answers to prompts, generated in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fusion_bench.parallel import ordered_map
from fusion_bench.taskpool.answer_cache import prompt_digest
from fusion_bench.taskpool.batching import Batch, BatchSize, plan

if TYPE_CHECKING:
    import torch

    from fusion_bench.family.seq2seq_lm import Seq2SeqLM


class Answers(Protocol):
    """A place where answers are kept."""

    def read(self) -> Mapping[str, str]:
        """Answers by the digest of their prompt."""

    def append(self, answers: Sequence[tuple[str, str]]) -> None:
        """Adds (digest of the prompt, answer) pairs."""


@dataclass(frozen=True, slots=True)
class Generator:
    """A loaded model with its tokenizer. The answers do not depend on batches, padding or the order of the prompts.

    `workers`: groups of prompts under way at once, each with `threads` threads for an operation.
    `encode`: prompts to token ids, `decode`: token ids to texts without special tokens; `pad`: the id that fills rows.
    """

    family: Seq2SeqLM
    module: torch.nn.Module
    device: torch.device
    encode: Callable[[Sequence[str]], list[Sequence[int]]]
    decode: Callable[[Any], list[str]]
    pad: int
    max_length: int
    size: BatchSize
    workers: int = 1
    threads: int = 1

    def answer(self, prompts: Sequence[str], kept: Answers, advance: Callable[[float], None]) -> tuple[list[str], int]:
        """The answer to each prompt, and how many of the prompts were answered out of `kept`.

        Equal prompts are answered once. New answers are handed to `kept` group by group; `advance` is told how many
        prompts.
        """
        digests = [prompt_digest(prompt) for prompt in prompts]
        texts = dict(zip(digests, prompts, strict=True))
        known = {digest: answer for digest, answer in kept.read().items() if digest in texts}
        reused = sum(digest in known for digest in digests)
        advance(reused)
        fresh = [digest for digest in texts if digest not in known]
        times = dict.fromkeys(fresh, 0)
        for digest in digests:
            if digest in times:
                times[digest] += 1
        ids = self.encode([texts[digest] for digest in fresh])
        groups = plan([len(row) for row in ids], self.size)
        for group, answers in zip(groups, self._answers(groups, ids), strict=True):
            places = [place for batch in group for place in batch]
            pairs = list(zip((fresh[place] for place in places), answers, strict=True))
            kept.append(pairs)
            known.update(pairs)
            advance(sum(times[digest] for digest, _ in pairs))
        return [known[digest] for digest in digests], reused

    def _answers(self, groups: Sequence[list[Batch]], ids: Sequence[Sequence[int]]) -> Iterator[list[str]]:
        import torch

        def answer(group: list[Batch]) -> list[str]:
            torch.set_num_threads(self.threads)
            return self._group(group, ids)

        # Even for a single worker on a thread of its own: the number of threads is a property of the calling thread.
        return ordered_map(answer, groups, self.workers)

    def _group(self, group: list[Batch], ids: Sequence[Sequence[int]]) -> list[str]:
        import torch

        try:
            return self.decode(self._tokens([[ids[place] for place in batch] for batch in group]))
        except torch.OutOfMemoryError:
            rows = [place for batch in group for place in batch]
            if len(rows) == 1:
                raise
        # Outside the handler, whose traceback would keep the failed attempt's tensors alive.
        torch.cuda.empty_cache()
        half = len(rows) // 2
        return self._group([rows[:half]], ids) + self._group([rows[half:]], ids)

    def _tokens(self, batches: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
        """Encodes batch by batch and decodes all rows at once."""
        import torch
        from torch.nn.functional import pad

        width = len(batches[0][0])
        states: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        with torch.inference_mode():
            for batch in batches:
                inputs, mask = self._padded(batch)
                missing = width - mask.shape[1]
                states.append(pad(self.family.encode(self.module, inputs, mask), (0, 0, 0, missing)))
                masks.append(pad(mask, (0, missing)))
            tokens = self.family.decode(self.module, torch.cat(states), torch.cat(masks), self.max_length)
        listed: list[list[int]] = tokens.tolist()
        return listed

    def _padded(self, batch: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        inputs = torch.full((len(batch), len(batch[0])), self.pad, dtype=torch.long)
        mask = torch.zeros_like(inputs)
        for row, ids in enumerate(batch):
            inputs[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
            mask[row, : len(ids)] = 1
        return inputs.to(self.device), mask.to(self.device)
