"""The device, precision, parallelism that an evaluation runs with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from fusion_bench.settings import Settings


def device_of(settings: Settings) -> torch.device:
    """The device that is asked for; ConfigError where this machine has none of that name."""
    import torch

    if settings.device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(settings.device)
    except RuntimeError as fault:
        raise ConfigError(f"device={settings.device}: no device of this form. Accepted: auto, cpu, cuda:0.") from fault
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            present = ", ".join(f"cuda:{i}" for i in range(count)) or "none"
            raise ConfigError(f"device={settings.device}: no such GPU. GPUs here: {present}. device=cpu always works.")
    return device


def dtype_of(settings: Settings) -> torch.dtype:
    """The precision of parameters and arithmetic."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[settings.dtype]


def kind_of(module: Any, device: torch.device) -> Literal["small", "cpu", "gpu"]:
    """What decides over batches and threads."""
    if device.type != "cpu":
        return "gpu"
    return "small" if getattr(module.config, "hidden_size", 0) < 256 else "cpu"


def parallelism(kind: Literal["small", "cpu", "gpu"], cores: int) -> tuple[int, int]:
    """Groups of prompts under way at once, and torch threads for each.

    Groups beside each other, not threads inside an operation: those wait for one another after each of them, on a busy
    machine for most of the time. Four at most, since each holds its activations.
    """
    if kind == "gpu":
        return 1, cores
    workers = min(cores, 4)
    return workers, 1 if kind == "small" else cores // workers
