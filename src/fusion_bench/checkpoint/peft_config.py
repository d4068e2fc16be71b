"""The settings of a PEFT adapter folder, accepted or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fusion_bench.checkpoint.folder import ADAPTER_CONFIG, read_json
from fusion_bench.errors import CheckpointError

Number = TypeVar("Number", int, float)

# Settings that steer training or say where the adapter sits; the stored tensors already reflect them.
_NEUTRAL = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "feedforward_modules", "inference_mode", "init_ia3_weights",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout",
    "lora_ga_config", "loftq_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "alpha_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_dora", "use_rslora",
})  # fmt: skip
# Initialisations that leave the base as it was. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) train against a
# changed base, which the adapter alone does not describe.
_PLAIN_STARTS = frozenset({"true", "false", "gaussian", "eva", "orthogonal", "mica", "none"})
# Heads that PEFT saves in full for these tasks even where modules_to_save does not list them.
_TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",),
}  # fmt: skip
_WAY_OUT = "Fold it with PEFT (merge_and_unload, save_pretrained) and give the full model instead."


@dataclass(frozen=True)
class AdapterConfig:
    """What of adapter_config.json decides the values of the adapted tensors."""

    kind: str
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    fan_in_fan_out: bool
    keeps_ties: bool
    saved_modules: tuple[str, ...]
    feedforward: tuple[str, ...] | str | None

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv 2312.03732); patterns decide per module."""
        rank = self.rank_of(module)
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def is_saved_module(self, name: str) -> bool:
        """Whether the tensor `name` belongs to a module that was trained and saved in full."""
        parents = name.split(".")[:-1]
        paths = [".".join(parents[:count]) for count in range(1, len(parents) + 1)]
        return any(path.endswith(module) for path in paths for module in self.saved_modules)

    def is_feedforward(self, module: str) -> bool:
        """Whether (IA)^3 scales the inputs of `module` rather than its outputs."""
        if isinstance(self.feedforward, str):
            return re.fullmatch(self.feedforward, module) is not None
        return any(module.endswith(part) for part in self.feedforward or ())


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Parses ``adapter_config.json``. Raises CheckpointError for every setting that is not supported, by name."""
    path = folder / ADAPTER_CONFIG
    raw = read_json(path)
    kind = str(raw.get("peft_type", "")).removeprefix("PeftType.").upper()
    if kind not in ("LORA", "IA3"):
        given = raw.get("peft_type")
        raise CheckpointError(f"{path}: peft_type {given!r} is not read. Accepted: LORA, IA3. {_WAY_OUT}")
    faults = _unsupported(raw)
    if faults:
        raise CheckpointError(f"{path}: not supported: {'; '.join(faults)}. {_WAY_OUT}")
    rank_pattern, alpha_pattern = raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}
    rank, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
    ranks, alphas = [rank, *rank_pattern.values()], [alpha, *alpha_pattern.values()]
    if not all(type(r) is int and r > 0 for r in ranks) or not all(isinstance(a, int | float) for a in alphas):
        raise CheckpointError(f"{path}: r and lora_alpha must be numbers, r above zero; given {rank!r} and {alpha!r}.")
    for pattern in (*rank_pattern, *alpha_pattern):
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{path}: {pattern!r} in rank_pattern or alpha_pattern: {error}.") from None
    saved = raw.get("modules_to_save") or []
    task = str(raw.get("task_type") or "").removeprefix("TaskType.")
    feedforward = raw.get("feedforward_modules")
    return AdapterConfig(
        kind=kind,
        rank=rank,
        alpha=alpha,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        rslora=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
        keeps_ties=bool(raw.get("ensure_weight_tying")),
        saved_modules=(*((saved,) if isinstance(saved, str) else saved), *_TASK_HEADS.get(task, ())),
        feedforward=tuple(feedforward) if isinstance(feedforward, list) else feedforward,
    )


def adapter_base(folder: Path) -> tuple[str, str | None]:
    """The model that the adapter in `folder` says it was trained on, and the revision.

    A relative path is tried from the adapter's own folder, then from the working directory; a path found either way
    comes back as a path, anything else as written (a Hub name).
    """
    path = folder / ADAPTER_CONFIG
    raw = read_json(path)
    name = raw.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{path}: base_model_name_or_path names no model. Give the one it was trained on.")
    revision = raw.get("revision")
    for place in (folder / name, Path(name).expanduser()):
        if place.exists():
            return str(place), None
    return name, revision if isinstance(revision, str) and revision else None


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """Settings that change the function in ways that are not folded, unknown ones with any value included."""
    faults = [f"{key}={_short(value)}" for key, value in sorted(raw.items()) if key not in _NEUTRAL and value]
    start = raw.get("init_lora_weights", True)
    if str(start).lower() not in _PLAIN_STARTS:
        faults.append(f"init_lora_weights={start!r} (trained against a changed base)")
    return faults


def _by_pattern(patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    """The value of the first pattern that matches the end of the module's name, as PEFT looks it up."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
