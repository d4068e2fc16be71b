"""What the configs of models that are fused disagree about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusion_bench.method.base import Inputs

# Keys that say where a model comes from or how it is used, not what it computes. Which weights are tied the files say.
_TRIVIA = frozenset({
    "_name_or_path", "_commit_hash", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "id2label", "label2id", "task_specific_params", "finetuning_task", "problem_type", "gradient_checkpointing",
    "tokenizer_class", "tie_word_embeddings", "output_past",
     "output_attentions", "output_hidden_states", "return_dict", "n_positions",
})  # fmt: skip


def config_remarks(inputs: Inputs) -> list[str]:
    """A sentence for each model whose config computes something else than the one that the result keeps.

    Keys that only one of two configs writes out are left alone: versions of transformers write different defaults.
    """
    kept = inputs.reference.config
    found = []
    for name, model in inputs.models.items():
        differing = [
            f"{key} ({_shown(model.config[key])}, not {_shown(kept[key])})"
            for key in sorted(set(kept) & set(model.config) - _TRIVIA)
            if model.config[key] != kept[key]
        ]
        if differing:
            found.append(
                f"the config of model {name!r} differs from {inputs.alignment.reference}'s, which the result keeps, in "
                + ", ".join(differing)
            )
    return found


def _shown(value: Any) -> str:
    return "{…}" if isinstance(value, Mapping) else str(value)
