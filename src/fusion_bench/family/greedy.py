"""Greedy decoding, pinned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def special_tokens(module: Any) -> tuple[int, tuple[int, ...], int]:
    """Start, ends and padding of a module's answers; CheckpointError where its config lacks one."""
    config = module.config
    start, end, pad = (getattr(config, n, None) for n in ("decoder_start_token_id", "eos_token_id", "pad_token_id"))
    names = [
        n for n, v in (("decoder_start_token_id", start), ("eos_token_id", end), ("pad_token_id", pad)) if v is None
    ]
    if start is None or end is None or pad is None:
        raise CheckpointError(f"the model's config gives no {', '.join(names)}: text cannot be generated.")
    ends = (end,) if isinstance(end, int) else tuple(end)
    return int(start), ends, int(pad)


def decode(module: Any, states: torch.Tensor, attention_mask: torch.Tensor, max_length: int) -> torch.Tensor:
    """Token ids, rows x at most `max_length`, of the likeliest continuation at each step given encoder `states`.

    Keys and values of earlier steps and of the encoder are computed once. Decoding stops when every row has produced
    an end token.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    start, ends, pad = special_tokens(module)
    rows = len(states)
    tokens = torch.full((rows, max_length), pad, dtype=torch.long, device=states.device)
    tokens[:, 0] = start
    stops = torch.tensor(ends, device=states.device)
    open_rows = torch.ones(rows, dtype=torch.bool, device=states.device)
    encoded = BaseModelOutput(last_hidden_state=states)
    cache = None
    length = 1
    with torch.inference_mode():
        while length < max_length:
            out = module(
                encoder_outputs=encoded,
                attention_mask=attention_mask,
                decoder_input_ids=tokens[:, length - 1 : length],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            chosen = out.logits[:, -1].argmax(-1)
            tokens[:, length] = torch.where(open_rows, chosen, pad)
            length += 1
            open_rows &= ~torch.isin(chosen, stops)
            if not bool(open_rows.any()):
                break
    return tokens[:, :length]
