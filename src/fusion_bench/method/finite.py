"""Refusing NaN and infinity where a computation would drop them silently or stumble over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_bench.errors import NonFiniteError

if TYPE_CHECKING:
    import torch

    from fusion_bench.method.inputs import Slot


def require_finite(slot: Slot, model: int, values: torch.Tensor) -> torch.Tensor:
    """`values`, made of the slot's entries of the model at position `model`; NonFiniteError names it and the tensor."""
    import torch

    # A finite sum proves finite entries at a third of the cost of testing each one.
    if torch.isfinite(values.sum()) or torch.isfinite(values).all():
        return values
    flat = values.reshape(-1)
    done, names = 0, []
    for name, start, stop in slot.run:
        if not torch.isfinite(flat[done : done + stop - start]).all():
            names.append(name)
        done += stop - start
    raise NonFiniteError(
        f"model {slot.model_names[model]!r}, or the base: tensor {names[0]!r} holds NaN or infinite entries.\n"
        "Repair the file, or leave the model out (modelpool.select)."
    )
