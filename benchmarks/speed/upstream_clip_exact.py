"""How far RegMean results of CLIP image encoders are from the solution of its equations in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Inputs that do not depend on one another, as after a layer norm, beside ones that do, as after an activation.
LAYERS = ("mlp.fc1", "mlp.fc2")
ROWS = 16


def errors(pool: Path, results: Mapping[str, Path], ratio: float, depth: int) -> dict[str, Any]:
    """For layers at a depth: the condition of the sum of reduced Grams, and of each side's weight the largest error.

    Errors are shares of the largest entry of the exact weight, from forwards, Grams and solution in float64.
    """
    import torch
    from peer_clip_pool import IMAGES, Pixels
    from transformers import CLIPVisionModel

    left: dict[str, torch.Tensor] = {}
    right: dict[str, torch.Tensor] = {}
    for folder in sorted(path for path in pool.iterdir() if path.is_dir() and path.name != "base"):
        module: Any = CLIPVisionModel.from_pretrained(folder).double().eval()
        module.encoder.layers = module.encoder.layers[: depth + 1]
        for name, gram in _grams(module, Pixels(pool / IMAGES, folder.name), depth).items():
            diagonal = gram.diagonal().clone()
            reduced = gram.mul_(ratio)
            reduced.diagonal().copy_(diagonal)
            product = reduced @ module.get_submodule(name).weight.detach().T
            left[name] = left[name].add_(reduced) if name in left else reduced
            right[name] = right[name].add_(product) if name in right else product
    found = {}
    for name, total in left.items():
        exact = torch.linalg.solve(total, right[name]).T
        spread = torch.linalg.eigvalsh(total)
        found[name] = {
            "condition": float(spread[-1] / spread[0]),
            **{side: _apart(_weight(out, name), exact) for side, out in results.items()},
        }
    return found


def _grams(module: Any, data: Any, depth: int) -> dict[str, torch.Tensor]:
    import torch

    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def see(layer: Any, given: Any, output: Any) -> None:
            rows = given[0].reshape(-1, given[0].shape[-1])
            sums[name] = rows.T @ rows + sums.get(name, 0)

        return see

    for name in (f"encoder.layers.{depth}.{layer}" for layer in LAYERS):
        module.get_submodule(name).register_forward_hook(watch(name))
    tokens = 0
    with torch.no_grad():
        for batch in data.batches(ROWS):
            tokens += module(batch.inputs["pixel_values"].double()).last_hidden_state.shape[:2].numel()
    return {name: total / tokens for name, total in sums.items()}


def _weight(folder: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as opened:
        stored = next(key for key in opened.keys() if key.removeprefix("vision_model.") == f"{name}.weight")  # noqa: SIM118
        tensor: torch.Tensor = opened.get_tensor(stored)
    return tensor.double()


def _apart(one: torch.Tensor, exact: torch.Tensor) -> float:
    return float((one - exact).abs().max() / exact.abs().max())
