"""The vision transformer of CLIP as a module after the names of OpenCLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_EPSILON = 1e-5


class Attention(nn.Module):
    """Self-attention with one linear layer for queries, keys and values.

    A linear layer, so that whoever listens to linear layers hears it; in the file it is ``in_proj_weight``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`states`, rows x tokens x width."""
        rows, tokens, width = states.shape
        fused = self.in_proj(states).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = fused.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: torch.Tensor = self.out_proj(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return out


class FeedForward(nn.Module):
    """Two linear layers around the activation."""

    def __init__(self, width: int, inner: int, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, inner)
        self.c_proj = nn.Linear(inner, width)
        self.activation = activation

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c_proj(self.activation(self.c_fc(states)))
        return out


class Block(nn.Module):
    """One layer: attention, then feed-forward, each behind a layer norm and added to what came in."""

    def __init__(self, width: int, inner: int, heads: int, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=_EPSILON)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=_EPSILON)
        self.mlp = FeedForward(width, inner, activation)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.attn(self.ln_1(states))
        out: torch.Tensor = states + self.mlp(self.ln_2(states))
        return out


class Blocks(nn.Module):
    """The stack of layers."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            states = block(states)
        return states


class Tower(nn.Module):
    """Pixels, rows x channels x height x width, to features in the joint space, rows x ``projection_dim``."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        width, patch = int(config["hidden_size"]), int(config["patch_size"])
        patches = (int(config["image_size"]) // patch) ** 2
        activation = quick_gelu if config["hidden_act"] == "quick_gelu" else functional.gelu
        self.conv1 = nn.Conv2d(int(config["num_channels"]), width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.ln_pre = nn.LayerNorm(width, eps=_EPSILON)
        self.transformer = Blocks([
            Block(width, int(config["intermediate_size"]), int(config["num_attention_heads"]), activation)
            for _ in range(int(config["num_hidden_layers"]))
        ])  # fmt: skip
        self.ln_post = nn.LayerNorm(width, eps=_EPSILON)
        self.proj = nn.Parameter(torch.empty(width, int(config["projection_dim"])))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(pixel_values).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        states = torch.cat([first, patches], dim=1) + self.positional_embedding
        states = self.transformer(self.ln_pre(states))
        out: torch.Tensor = self.ln_post(states[:, 0]) @ self.proj
        return out


def quick_gelu(values: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return values * torch.sigmoid(1.702 * values)


def tower(config: Mapping[str, Any], state: dict[str, torch.Tensor], dtype: torch.dtype) -> Tower:
    """A tower that holds the tensors of `state` themselves; what fits nowhere, or lacks, is found by the loader."""
    with torch.device("meta"):
        module = Tower(config).to(dtype)
    held = module.state_dict()
    inside = {name.replace("attn.in_proj_", "attn.in_proj."): tensor for name, tensor in state.items()}
    fitting = {name: tensor for name, tensor in inside.items() if name in held and held[name].shape == tensor.shape}
    module.load_state_dict(fitting, strict=False, assign=True)
    return module
