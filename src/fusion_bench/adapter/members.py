"""What the members of a pool do to each tensor of their base, told from headers; their factors, read one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.adapter.adapter import Target
from fusion_bench.checkpoint.adapter import AdapterCheckpoint
from fusion_bench.checkpoint.adapter_names import sort_out
from fusion_bench.checkpoint.base import Checkpoint, Dense, LowRank, Scale
from fusion_bench.checkpoint.dtypes import torch_dtype
from fusion_bench.checkpoint.folder import listed
from fusion_bench.checkpoint.peft_config import adapter_base, read_adapter_config
from fusion_bench.errors import CheckpointError, ConfigError, NonFiniteError

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.structure import Structure

Kind = type[LowRank] | type[Scale] | type[Dense]


@dataclass(frozen=True)
class Members:
    """`kinds`: tensor -> the kinds of change that members make of it; `targets`: what factors and vectors change."""

    models: Mapping[str, Checkpoint]
    base: Checkpoint
    structure: Structure
    kinds: Mapping[str, frozenset[Kind]]
    targets: Mapping[str, Target]

    def of_kind(self, kind: Kind) -> list[str]:
        """The tensors that some member changes in this way."""
        return [name for name, kinds in self.kinds.items() if kind in kinds]

    @property
    def others(self) -> list[str]:
        """Tensors that members change in full and that are no weights of linear layers: norms, biases, heads."""
        return [name for name in self.of_kind(Dense) if not self.factorable(name)]

    def factorable(self, name: str) -> bool:
        """Whether an adapter can hold factors for the tensor."""
        return name in self.targets or (name in self.structure.linear and name.endswith(".weight"))

    def target(self, name: str) -> Target:
        """The target of a tensor; one that no adapter names gets the module that its name says."""
        found = self.targets.get(name)
        return found or Target(name, name.removesuffix(".weight"), self.base.info(name).shape)

    def factors(self, name: str) -> tuple[bool, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Whether the base stores the tensor as in x out, and B (scaled) and A of each model that changes it.

        Raises NonFiniteError.
        """
        import torch

        turned: bool | None = None
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for model, checkpoint in self.models.items():
            delta = checkpoint.delta(name)
            if not isinstance(delta, LowRank):
                continue
            if not torch.isfinite(delta.A).all() or not torch.isfinite(delta.B).all():
                raise NonFiniteError(
                    f"model {model!r}: the factors of {self.targets[name].module} hold NaN or infinity."
                )
            up, down = delta.B.to(torch.float64) * delta.scale, delta.A.to(torch.float64)
            turned = delta.transposed if turned is None else turned
            # Two names of one tensor (a table and the tied output layer) may be adapted from either side.
            found[model] = (up, down) if delta.transposed == turned else (down.t(), up.t())
        return bool(turned), found

    def turned(self, name: str) -> bool:
        """Whether the base stores the tensor as in x out: as the adapters tell, else as the architecture has it."""
        if name in self.targets and self.targets[name].embedding:
            return True
        for checkpoint in self.models.values():
            delta = checkpoint.delta(name) if LowRank in self.kinds[name] else None
            if isinstance(delta, LowRank):
                return delta.transposed
        return name in self.structure.transposed

    def dtype(self, name: str) -> torch.dtype:
        """The precision that results are kept in: float64 over a float64 base, else float32."""
        return torch_dtype("F64" if self.base.info(name).dtype == "F64" else "F32")

    def null(self, name: str) -> float:
        """Singular values up to this, relative to the largest, are rounding."""
        return 1e-14 if self.base.info(name).dtype == "F64" else 1e-7


def survey(models: Mapping[str, Checkpoint], base: Checkpoint, structure: Structure, names: Iterable[str]) -> Members:
    """The members over the floating tensors `names`. ConfigError for adapters over another base, or in conflict."""
    strangers = [
        name for name, model in models.items() if isinstance(model, AdapterCheckpoint) and not _same(model.base, base)
    ]
    if strangers:
        raise ConfigError(
            f"{listed(strangers)}: adapters over another base than the pool's. Adapters can be fused where they change "
            "one and the same model; leave them out (modelpool.select)."
        )
    targets: dict[str, Target] = {}
    for name, model in models.items():
        if isinstance(model, AdapterCheckpoint):
            for target in _targets(model):
                known = targets.setdefault(target.name, target)
                if known.feedforward != target.feedforward:
                    raise ConfigError(
                        f"{name}: its (IA)^3 vector of {target.module} scales the "
                        f"{'inputs' if target.feedforward else 'outputs'}, those of other adapters do the opposite. "
                        "They cannot become one vector; leave it out (modelpool.select)."
                    )
    kinds: dict[str, frozenset[Kind]] = {}
    for name in names:
        found = {_kind(model, name) for model in models.values()}
        kinds[name] = frozenset(kind for kind in found if kind is not None)
    return Members(models, base, structure, kinds, targets)


def _kind(model: Checkpoint, name: str) -> Kind | None:
    return model.kind(name) if isinstance(model, AdapterCheckpoint) else Dense


def _same(one: Checkpoint, other: Checkpoint) -> bool:
    return one is other or (bool(one.identity) and one.identity == other.identity)


def _targets(adapter: AdapterCheckpoint) -> Iterable[Target]:
    contents = sort_out(adapter.tensors)
    config = read_adapter_config(adapter.path)
    for name, module in adapter.modules.items():
        shape = adapter.info(name).shape
        if len(shape) < 2:
            continue  # a bias, which follows from the vector of its module or counts as a change of its own
        parts = contents.modules[module]
        target = Target(name, module, shape, embedding="embedding_A" in parts)
        if "ia3" in parts:
            sides = adapter.tensors.info(parts["ia3"]).shape
            told = len(sides) == 2 and 1 in sides and max(sides) > 1
            target = replace(target, feedforward=sides[0] == 1 if told else config.is_feedforward(module))
        yield target


def task_type(models: Iterable[Checkpoint], config: Mapping[str, Any]) -> str | None:
    """What PEFT calls the task: the adapters' where they agree, else by the base's architecture; None if unknown."""
    from fusion_bench.checkpoint.folder import ADAPTER_CONFIG, read_json

    given = {
        str(read_json(model.path / ADAPTER_CONFIG).get("task_type") or "").removeprefix("TaskType.")
        for model in models
        if isinstance(model, AdapterCheckpoint)
    }
    if len(given) == 1 and given != {""}:
        return given.pop()
    architecture = str((config.get("architectures") or [""])[0])
    ends = {
        "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS",
        "ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS",
    }  # fmt: skip
    if architecture.endswith("ForConditionalGeneration") and config.get("is_encoder_decoder"):
        return "SEQ_2_SEQ_LM"
    return next((task for end, task in ends.items() if architecture.endswith(end)), None)


def reference(models: Iterable[Checkpoint]) -> tuple[str, str | None] | None:
    """The model on the Hub that the adapters say they were trained on, and its revision, where they agree on one."""
    found: set[tuple[str, str | None] | None] = set()
    for model in models:
        if isinstance(model, AdapterCheckpoint):
            try:
                name, revision = adapter_base(model.path)
            except CheckpointError:
                continue
            found.add(None if Path(name).expanduser().exists() or name.startswith((".", "/")) else (name, revision))
    return found.pop() if len(found) == 1 else None
