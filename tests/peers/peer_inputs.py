"""Tensors that merging goes wrong on: odd shapes, zeros, equals, opposites, repeated magnitudes."""

from __future__ import annotations

import zlib

import numpy as np
import torch

State = dict[str, torch.Tensor]

SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (5, 3), (3, 5), (2, 3, 4), (6, 1))
KINDS = (
    "random", "near", "zero base", "one at base", "all at base", "equal", "opposite", "repeated", "first zero", "zeros",
)  # fmt: skip


def named(kinds: tuple[str, ...] = KINDS, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of every kind and shape asked for; the kind stands before the colon."""
    return {f"{kind}:{'x'.join(map(str, shape)) or 'scalar'}": shape for kind in kinds for shape in shapes}


def kind_of(name: str) -> str:
    return name.split(":")[0]


def llama(layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a Llama checkpoint that fits `run_mergekit.LLAMA`; every tensor is random."""
    parts = {
        "input_layernorm": (8,), "post_attention_layernorm": (8,), "mlp.down_proj": (8, 12), "mlp.gate_proj": (12, 8),
        "mlp.up_proj": (12, 8), "self_attn.k_proj": (4, 8), "self_attn.o_proj": (8, 8), "self_attn.q_proj": (8, 8),
        "self_attn.v_proj": (4, 8),
    }  # fmt: skip
    outside = {"model.embed_tokens.weight": (16, 8), "model.norm.weight": (8,), "lm_head.weight": (16, 8)}
    blocks = {f"model.layers.{i}.{part}.weight": shape for i in range(layers) for part, shape in parts.items()}
    return {**outside, **blocks}


def states(count: int, dtype: torch.dtype, names: dict[str, tuple[int, ...]]) -> tuple[State, list[State]]:
    """A base and `count` models, the same in every process."""
    base: State = {}
    models: list[State] = [{} for _ in range(count)]
    for name, shape in names.items():
        rng = np.random.default_rng(zlib.crc32(f"{name}/{count}".encode()))
        start, ends = _drawn(kind_of(name), shape, count, rng)
        base[name] = torch.from_numpy(np.asarray(start)).to(dtype)
        for model, end in zip(models, ends, strict=True):
            model[name] = torch.from_numpy(np.asarray(end)).to(dtype)
    return base, models


def _drawn(
    kind: str, shape: tuple[int, ...], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    start = np.asarray(rng.standard_normal(shape))
    deltas = [np.asarray(rng.standard_normal(shape)) for _ in range(count)]
    if kind == "near":
        deltas = [delta * 1e-2 for delta in deltas]
    elif kind == "zero base":
        start = np.zeros(shape)
    elif kind == "one at base":
        deltas[0] = np.zeros(shape)
    elif kind == "all at base":
        deltas = [np.zeros(shape)] * count
    elif kind == "equal":
        deltas = [deltas[0]] * count
    elif kind == "opposite":
        # Exact in every dtype, so that the deltas cancel exactly too; fine enough to be distinct.
        first = np.round(deltas[0] * 65536) / 65536
        start, deltas = np.round(start * 65536) / 65536, [first if i % 2 == 0 else -first for i in range(count)]
    elif kind == "repeated":
        start = np.round(start * 4) / 4
        deltas = [np.asarray(rng.choice([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], size=shape)) for _ in range(count)]
    elif kind == "zeros":
        start, deltas = np.zeros(shape), [np.zeros(shape)] * count
    ends = [np.asarray(start + delta) for delta in deltas]
    if kind == "first zero":
        ends[0] = np.zeros(shape)
    elif kind == "same length":
        ends = [end * (np.linalg.norm(ends[0]) / np.linalg.norm(end)) for end in ends]
    return start, ends
