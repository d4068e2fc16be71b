"""Encoder-decoder language models: T5 and its kin, BART and its kin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.errors import CheckpointError
from fusion_bench.family.base import Advance, ModelFamily
from fusion_bench.family.ties import Ties, shared_embedding, tied_head

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint

T5_LIKE: Final = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})
# model_type -> the attribute of the model that holds embedding, encoder and decoder.
BART_LIKE: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("bart", "mbart", "plbart", "pegasus", "pegasus_x", "bigbird_pegasus", "blenderbot", "blenderbot-small",
         "m2m_100", "nllb-moe", "mvp", "marian"),
        "model.",
    ),
    "led": "led.",
}  # fmt: skip
MODEL_TYPES: Final = T5_LIKE | BART_LIKE.keys()


class Seq2SeqLM(ModelFamily):
    """What AutoModelForSeq2SeqLM loads. The tensors of the checkpoint are the truth about tied weights."""

    name = "seq2seq_lm"
    # In the Mesh TensorFlow exports of T5 v1.0.
    unread = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})

    def aliases(self, config: Mapping[str, Any]) -> Ties:
        kind = config.get("model_type")
        if kind in T5_LIKE:
            return shared_embedding(config, "", "lm_head.weight")
        if kind == "marian" and config.get("share_encoder_decoder_embeddings") is False:
            return tied_head(config, "model.decoder.embed_tokens.weight")
        return shared_embedding(config, BART_LIKE.get(str(kind), "model."), "lm_head.weight", fixed=False)

    def load(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        threads: int = 1,
        advance: Advance | None = None,
    ) -> torch.nn.Module:
        from fusion_bench.family.loading import module_of

        return module_of(checkpoint, self.aliases(checkpoint.config), dtype, device, threads, advance)

    def reload(
        self, module: torch.nn.Module, checkpoint: Checkpoint, threads: int = 1, advance: Advance | None = None
    ) -> None:
        from fusion_bench.family.loading import fill

        fill(module, checkpoint, self.aliases(checkpoint.config), threads, advance)

    def token_stream(self, layer: str) -> str:
        # Keys and values of cross-attention are made of what the encoder says.
        crossed = re.search(r"\.(EncDecAttention\.[kv]|encoder_attn\.[kv]_proj)$", layer)
        return "encoder" if crossed or re.match(r"(model\.|led\.)?encoder\.", layer) else "decoder"

    def encode(self, module: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The encoder's last hidden states, rows x tokens x width."""
        states: torch.Tensor = module.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)[0]
        return states

    def decode(
        self, module: torch.nn.Module, states: torch.Tensor, attention_mask: torch.Tensor, max_length: int = 10
    ) -> torch.Tensor:
        """The greedy answers to encoded inputs, as token ids that begin with the start token."""
        from fusion_bench.family.greedy import decode

        return decode(module, states, attention_mask, max_length)

    def generate(
        self, module: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, max_length: int = 10
    ) -> torch.Tensor:
        """The tokens of ``generate(do_sample=False, num_beams=1, max_length=max_length)`` with nothing else set.

        `max_length` counts the start token. The module's generation_config is never read: two checkpoints whose
        files differ in it are measured alike. Rows that end early are filled with the padding token.
        """
        import torch

        with torch.inference_mode():
            return self.decode(module, self.encode(module, input_ids, attention_mask), attention_mask, max_length)

    def special_tokens(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """Start, end and padding of answers as a config gives them. Raises CheckpointError where one is missing."""
        self.check_generation(config)
        given = {"pad_token_id": 0, "eos_token_id": 1, **config}
        end = given["eos_token_id"]
        return int(given["decoder_start_token_id"]), int(end if isinstance(end, int) else end[0]), given["pad_token_id"]

    def check_generation(self, config: Mapping[str, Any]) -> None:
        """Raises CheckpointError where the config names no start, end or padding token. Reads only the mapping."""
        # T5's own classes define padding and end; the start is nowhere defined but in the file.
        given = (
            {"pad_token_id": 0, "eos_token_id": 1, **config} if config.get("model_type") in T5_LIKE else dict(config)
        )
        absent = [
            name for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id") if given.get(name) is None
        ]
        if absent:
            raise CheckpointError(
                f"the model's config.json gives no {', '.join(absent)}: text cannot be generated. "
                "Add what the model was trained with (T5: decoder_start_token_id 0, eos_token_id 1, pad_token_id 0)."
            )
