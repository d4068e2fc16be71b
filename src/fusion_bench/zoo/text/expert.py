"""One expert: the base model fine-tuned on the training split of one task."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from .corpus import finetuning
from .training import Log, batches, encode, train
from .whole import whole

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

BATCH: Final = 32
STEPS: Final = 150
RATE: Final = 2e-3
FULL_RATE: Final = 3e-3
LORA: Final[dict[str, Any]] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": ["q", "k", "v", "o"],
    "task_type": "SEQ_2_SEQ_LM",
}


def finetune(
    base: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    seed: int,
    *,
    full: bool = False,
    log: Log = print,
) -> torch.nn.Module:
    """A model around a copy of ``base``: with an adapter, or with ``full`` all weights trained."""
    import torch

    torch.manual_seed(seed)
    model: torch.nn.Module = copy.deepcopy(base)
    if not full:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**LORA))
    stream = batches(encode(finetuning(task), tokenizer), BATCH, Random(f"expert/{task}/{seed}"))
    # Factors start at scale zero on one side: a rate relative to their size would never move them.
    train(model, stream, STEPS, FULL_RATE if full else RATE, relative=full, log=log, title=task)
    return model


def save_adapter(model: torch.nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """A PEFT folder which finds its base beside itself, wherever the pool is copied to."""
    saved: Any = model.to(dtype)
    with whole(folder) as part:
        saved.save_pretrained(part)
        path = part / "adapter_config.json"
        config = json.loads(path.read_text())
        config["base_model_name_or_path"] = "../base"
        config["target_modules"] = sorted(config["target_modules"])
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (part / "README.md").unlink(missing_ok=True)
