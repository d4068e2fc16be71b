"""Parameter counts out of checkpoint headers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.family import family_of

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint

# Floating tensors that modules register as buffers, so that parameters() does not list them: running statistics,
# rotary frequencies, the causal masks in old GPT-2 files, BART's logits bias.
_BUFFERS: Final = re.compile(
    r"(^|\.)(running_mean|running_var|inv_freq|masked_bias|final_logits_bias|h\.\d+\.attn\.bias)$"
)


def model_info(checkpoint: Checkpoint) -> dict[str, Any]:
    """``{"trainable_params", "all_params", "trainable_percentage"}`` as a loaded module would count them.

    Counts the entries of floating tensors that are no buffers; a tensor stored under several names counts once. An
    output layer that the file stores is a tensor of its own, whatever the config says of tying. Nothing freezes
    parameters in a checkpoint, so all are trainable. Reads headers only and imports no torch.
    """
    infos = checkpoint.infos
    copies = family_of(checkpoint.config).aliases(checkpoint.config).resolve(infos)
    count = sum(
        info.numel for name, info in infos.items() if info.floating and name not in copies and not _BUFFERS.search(name)
    )
    return {"trainable_params": count, "all_params": count, "trainable_percentage": 1.0 if count else 0.0}
