"""Architectures that are fused and counted but not run here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fusion_bench.errors import CheckpointError
from fusion_bench.family.base import Advance, ModelFamily
from fusion_bench.family.ties import NONE, Ties, tied_head

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint

# model_type -> the embedding which the output layer `lm_head` shares.
EMBEDDINGS: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
         "olmo", "olmo2", "stablelm", "starcoder2", "cohere", "granite", "smollm3"),
        "model.embed_tokens.weight",
    ),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "codegen", "falcon"), "transformer.wte.weight"),
    "falcon": "transformer.word_embeddings.weight",
    "bloom": "transformer.word_embeddings.weight",
    "opt": "model.decoder.embed_tokens.weight",
}  # fmt: skip


class GenericFamily(ModelFamily):
    """Knows which output layers share an embedding, nothing else."""

    name = "generic"

    def aliases(self, config: Mapping[str, Any]) -> Ties:
        embedding = EMBEDDINGS.get(str(config.get("model_type")))
        return tied_head(config, embedding) if embedding else NONE

    def load(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        threads: int = 1,
        advance: Advance | None = None,
    ) -> NoReturn:
        raise _not_run(checkpoint.config)

    def reload(
        self, module: torch.nn.Module, checkpoint: Checkpoint, threads: int = 1, advance: Advance | None = None
    ) -> NoReturn:
        raise _not_run(checkpoint.config)


def _not_run(config: Mapping[str, Any]) -> CheckpointError:
    from fusion_bench.family import runnable_types

    kind = config.get("model_type")
    what = (
        f"models of model_type {kind!r}" if kind else "a checkpoint without config.json, or with no model_type in it,"
    )
    return CheckpointError(
        f"{what} can be fused, counted and saved but not run for evaluation. "
        f"Model types that can: {', '.join(sorted(runnable_types()))}. Take taskpool=dummy to count parameters."
    )
