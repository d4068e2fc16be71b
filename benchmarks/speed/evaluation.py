"""Speed of evaluation against the plain path, on T5-base's shape and real GLUE prompts.

Plain: inputs padded to 512, batches of 32 in the given order, ``generate(max_length=10)``. Ours: the generator behind
taskpool=flan-t5_glue_text_generation, without its cache. Both answer the same prompts with the same module, threads and
precision, from text to text, in turns in one process; their answers have to be identical. The arithmetic bound is the
ratio of the floating point operations of the model at 512 input tokens to those at the prompts' own lengths: what
leaving out the padding can give if everything else is equal.

usage: python benchmarks/speed/evaluation.py [--data DIR] [--prompts 500] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tokenizers
import torch
import transformers

from fusion_bench.family.seq2seq_lm import Seq2SeqLM
from fusion_bench.taskpool import examples, glue_data, templates
from fusion_bench.taskpool.answer_cache import NoCache
from fusion_bench.taskpool.batching import BatchSize
from fusion_bench.taskpool.generation import Generator
from fusion_bench.taskpool.placement import parallelism
from fusion_bench.taskpool.session import LoadedTokenizer
from fusion_bench.taskpool.tokenizer import TokenizerSource

PADDED, ROWS, MAX_LENGTH = 512, 32, 10
GOAL = 0.85


def t5_base() -> Any:
    """Random weights in the shape of make_pool.py's t5-base, with an output layer of its own, as Flan-T5 has.

    A shared one would repeat the start token for ever; under this one every prompt has an answer of its own.
    """
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=32128,
        d_model=768,
        d_kv=64,
        d_ff=2048,
        num_layers=12,
        num_heads=12,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    model.config.tie_word_embeddings = False
    return model.eval().requires_grad_(False)


def sentences(data: str | None) -> Iterator[str]:
    """Every sentence of the training splits."""
    for task in templates.TASKS:
        columns = templates.template(task).columns[:-1]
        for row in glue_data.find(task, data, "train").rows():
            yield from (row[column] for column in columns)


def train_tokenizer(data: str | None, folder: Path) -> LoadedTokenizer:
    """A Unigram model of 32,000 pieces, ended as T5's by </s>."""
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=32000, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(sentences(data), trainer)
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=PADDED, **names).save_pretrained(
        folder
    )
    source = TokenizerSource("trained here", folder)
    return LoadedTokenizer(source, source.digest(), PADDED, source.load())


def choose_prompts(data: str | None, count: int) -> list[str]:
    """As many prompts from the validation split of each task, in the order of the tasks."""
    each = -(-count // len(templates.TASKS))
    found = [examples.read(task, "glue", data_dir=data, limit=each) for task in templates.TASKS]
    surplus = each * len(templates.TASKS) - count
    sizes = [each - (place >= len(found) - surplus) for place in range(len(found))]
    return [text.prompt for task, size in zip(found, sizes, strict=True) for text in task.texts[:size]]


def flops(config: Any, inputs: int, outputs: int) -> int:
    """Operations (a multiply-add is two) for one prompt of `inputs` tokens and an answer of `outputs` new tokens."""
    width, inner, hidden = config.d_model, config.num_heads * config.d_kv, config.d_ff
    square, feed = 2 * width * inner, 3 * 2 * width * hidden
    encoder = config.num_layers * inputs * (4 * square + feed + 2 * 2 * inputs * inner)
    kept = config.num_decoder_layers * inputs * 2 * square
    seen = outputs * (outputs + 1) // 2
    decoder = config.num_decoder_layers * (
        outputs * (6 * square + feed + 2 * 2 * inputs * inner) + 2 * 2 * seen * inner
    )
    return encoder + kept + decoder + outputs * 2 * width * config.vocab_size


@dataclass
class Plain:
    """The plain path, batch by batch."""

    module: Any
    tokenizer: Any

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """The answers to one batch."""
        batch = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=PADDED, return_tensors="pt"
        )
        with torch.inference_mode():
            tokens = self.module.generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                num_beams=1,
                max_length=MAX_LENGTH,
            )
        texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


def ours(module: Any, tokenizer: LoadedTokenizer, prompts: Sequence[str], cores: int) -> list[str]:
    """The answers of the package, tokenised anew."""
    tokenizer._ids.clear()
    workers, threads = parallelism("cpu", cores)
    generator = Generator(
        family=Seq2SeqLM(),
        module=module,
        device=torch.device("cpu"),
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        pad=0,
        max_length=MAX_LENGTH,
        size=BatchSize.choose("auto", "cpu"),
        workers=workers,
        threads=threads,
    )
    return generator.answer(prompts, NoCache(), lambda amount: None)[0]


def measure(module: Any, tokenizer: LoadedTokenizer, prompts: Sequence[str], turns: int) -> dict[str, Any]:
    """Both paths in turns: a share of the plain batches, then all prompts our way, and so on."""
    plain = Plain(module, tokenizer._inner)
    cores = torch.get_num_threads()
    batches = [prompts[start : start + ROWS] for start in range(0, len(prompts), ROWS)]
    shares = [batches[len(batches) * i // turns : len(batches) * (i + 1) // turns] for i in range(turns)]
    slow, fast, expected, answers = 0.0, [], [], []
    plain.answer(prompts[:2])
    for number, share in enumerate(shares):
        started = time.perf_counter()
        answers = ours(module, tokenizer, prompts, cores)
        fast.append(time.perf_counter() - started)
        started = time.perf_counter()
        for batch in share:
            expected += plain.answer(batch)
        slow += time.perf_counter() - started
        print(f"turn {number + 1} of {turns}: ours {fast[-1]:.1f} s, plain {slow:.1f} s so far", file=sys.stderr)
    lengths = [len(ids) for ids in tokenizer.encode(prompts)]
    # Pieces of the answers as text are close to the tokens generated; an answer that ends early costs one more.
    tokens = [min(MAX_LENGTH - 1, len(ids)) for ids in tokenizer.encode(expected)]
    padded = sum(flops(module.config, PADDED, new) for new in tokens)
    bare = sum(flops(module.config, length, new) for length, new in zip(lengths, tokens, strict=True))
    speedup, bound = slow / statistics.median(fast), padded / bare
    return {
        "prompts": len(prompts),
        "distinct_answers": len(set(expected)),
        "identical": sum(a == b for a, b in zip(answers, expected, strict=True)),
        "tokens_per_prompt": statistics.mean(lengths),
        "longest_prompt": max(lengths),
        "plain_seconds": slow,
        "our_seconds": fast,
        "our_median_seconds": statistics.median(fast),
        "speedup": speedup,
        "arithmetic_bound": bound,
        "share_of_bound": speedup / bound,
        "goal": GOAL,
        "reached": speedup / bound >= GOAL and answers == expected,
        "plain_gflops_per_second": padded / slow / 1e9,
        "our_gflops_per_second": bare / statistics.median(fast) / 1e9,
    }


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder that holds glue/; default FUSION_BENCH_DATA, else the Hub's cache")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3, help="how often the two paths alternate")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluation.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(given.data, Path(folder))
        found = measure(t5_base(), tokenizer, choose_prompts(given.data, given.prompts), given.turns)
    machine = {"cpu": platform.processor() or platform.machine(), "threads": given.threads}
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    options = f"--prompts {given.prompts} --threads {given.threads} --turns {given.turns}"
    command = f"python benchmarks/speed/evaluation.py {options}"
    result = {"command": command, **found, "machine": machine, "versions": versions}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    print(
        f"{found['speedup']:.2f} times the plain path; arithmetic bound {found['arithmetic_bound']:.2f}; "
        f"share {found['share_of_bound']:.2f} (goal {GOAL}); "
        f"identical answers {found['identical']} of {found['prompts']}"
    )
    return 0 if found["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
