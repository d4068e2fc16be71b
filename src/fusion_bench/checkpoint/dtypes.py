"""The dictionary between the spellings of dtypes: safetensors headers, torch, people."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from fusion_bench.checkpoint.base import DTYPE_BYTES
from fusion_bench.errors import CheckpointError, ConfigError, unknown

if TYPE_CHECKING:
    import torch

TORCH_NAMES: dict[str, str] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_HEADER_NAMES = {torch_name: name for name, torch_name in TORCH_NAMES.items()}
_SHORT = {"fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16", "half": "F16", "float": "F32", "double": "F64"}


@cache
def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a header spelling: ``"BF16"`` -> ``torch.bfloat16``."""
    import torch

    dtype = getattr(torch, TORCH_NAMES[name])
    assert isinstance(dtype, torch.dtype)
    return dtype


def header_name(dtype: torch.dtype, where: str) -> str:
    """The header spelling of a torch dtype; `where` names the tensor in the error for dtypes that have none."""
    spelled = str(dtype).removeprefix("torch.")
    if spelled not in _HEADER_NAMES:
        raise CheckpointError(f"{where}: dtype {spelled} is not read. Accepted: {', '.join(sorted(_HEADER_NAMES))}.")
    return _HEADER_NAMES[spelled]


def parse_dtype(spelled: str) -> str:
    """The header spelling of what a person writes: ``bfloat16``, ``bf16``, ``torch.bfloat16`` or ``BF16``."""
    word = spelled.strip().removeprefix("torch.")
    if word.upper() in DTYPE_BYTES:
        return word.upper()
    found = _HEADER_NAMES.get(word.lower()) or _SHORT.get(word.lower())
    if found is None:
        raise ConfigError(unknown("dtype", spelled, _HEADER_NAMES))
    return found


def compute_name(name: str) -> str:
    """The precision in which values of dtype `name` are computed with: float64 for float64, else float32."""
    return "F64" if name == "F64" else "F32"
