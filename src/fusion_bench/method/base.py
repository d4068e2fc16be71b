"""What a fusion algorithm is: a small frozen value whose fields are its hyperparameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.errors import ConfigError
from fusion_bench.method.fused import Built, Fused, Members, Merged, PerTask
from fusion_bench.method.inputs import Granularity, Inputs, Scan, Slot

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.align import Alignment
    from fusion_bench.checkpoint.base import Checkpoint

__all__ = [
    "Built", "CheckpointMethod", "Fused", "Granularity", "Inputs", "Members", "Merged", "ModelFusionAlgorithm",
    "PerTask", "Scan", "Slot", "TensorMethod",
]  # fmt: skip


@dataclass(frozen=True)
class ModelFusionAlgorithm(ABC):
    """A fusion algorithm (arXiv 2406.03280, section 3.2). Subclasses are final, frozen dataclasses.

    Class facts: `category`; `requirement` as in Table 1 of that paper; `source`, the paper that defines it; whether
    the order of models matters not (`symmetric`), draws are made (`random`), a base is needed (`needs_base`) or
    the models are looked at at all (`reads_models`); the fewest and the most models (`model_counts`, None: any number);
    `identity`, the hyperparameters under which one model, and N equal ones, fuse to that model, by those two cases
    (None where the law does not hold).
    """

    category: ClassVar[Literal["ensembling", "merging", "mixing"]] = "merging"
    requirement: ClassVar[str] = "-"
    source: ClassVar[str] = ""
    symmetric: ClassVar[bool] = True
    random: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    reads_models: ClassVar[bool] = True
    model_counts: ClassVar[tuple[int, int | None]] = (1, None)
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {"one": {}, "equal": {}}

    def __post_init__(self) -> None:
        """Checks and converts the hyperparameters, however the value was made. ConfigError lists every fault."""
        from fusion_bench.build import check

        checked, faults = check(type(self), {f.name: getattr(self, f.name) for f in fields(self)}, "method")
        if faults:
            raise ConfigError("\n".join(faults))
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def key(cls) -> str:
        """The registry key: the name of the file that defines the class."""
        return cls.__module__.rsplit(".", 1)[-1]

    @classmethod
    def from_plain(cls, value: Any, where: str) -> ModelFusionAlgorithm:
        """An algorithm out of a key or of a mapping with `name` and hyperparameters, of the kind `cls`. ConfigError."""
        from fusion_bench.build import build
        from fusion_bench.method import method_class

        values = {"name": value} if isinstance(value, str) else dict(value)
        name = values.pop("name", None)
        if name is None:
            raise ConfigError(f"{where}.name is missing: give the key of a method, as in {where}=task_arithmetic.")
        chosen = method_class(str(name))
        if not issubclass(chosen, cls):
            raise ConfigError(f"{where}={name}: does not merge tensor by tensor, so it cannot stand there.")
        return build(chosen, values, where)

    def plain(self) -> dict[str, Any]:
        """Key and hyperparameters as plain values, ready for JSON; methods inside likewise."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            "name": self.key(),
            **{k: v.plain() if isinstance(v, ModelFusionAlgorithm) else _plain(v) for k, v in values.items()},
        }

    @abstractmethod
    def fuse(self, inputs: Inputs) -> Fused:
        """Fuses aligned checkpoints; the result stays lazy where it can be."""

    def check(self, models: Sequence[str]) -> None:
        """Refuses hyperparameters that do not fit these models; no tensor is read. ConfigError."""
        return

    def check_tensors(self, alignment: Alignment) -> None:
        """Refuses hyperparameters that do not fit the tensors' names or shapes; no tensor is read. ConfigError."""
        return

    def run(self, models: Any, base: Any = None, **how: Any) -> Any:
        """Fuses a pool, checkpoints, state dicts or modules; see :func:`fusion_bench.api.fuse`."""
        from fusion_bench.api import fuse

        return fuse(self, models, base, **how)


@dataclass(frozen=True)
class TensorMethod(ModelFusionAlgorithm):
    """An algorithm that merges slice by slice, after any number of streaming passes with bounded state.

    `per_task`: the result is one checkpoint for each model's task; `merge` is then called with `slot.task` set.
    """

    per_task: ClassVar[bool] = False

    @property
    def pointwise(self) -> bool:
        """Whether an entry depends on the entries at its place alone: small tensors are then merged several at once."""
        return False

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        """How far tensor `name` may be cut: anywhere, between rows (runs of its last dimension), or not at all."""
        return "element"

    def workspace(self, name: str, inputs: Inputs) -> float:
        """Memory that merging a slice takes, in slices of the computing dtype: inputs, temporaries, result."""
        return 9.0

    def holds(self, inputs: Inputs) -> int:
        """Bytes that the method's own passes hold beside the slices that are under way."""
        return 0

    def passes(self, inputs: Inputs) -> int:
        """How often each model is read in full, the merge itself included."""
        return 1

    def operations(self, name: str, inputs: Inputs) -> float:
        """Floating-point operations that tensor `name` costs, roughly: for estimates of time."""
        return 1.5 * inputs.alignment.infos[name].numel * (len(inputs.models) + 1) * self.passes(inputs)

    def survey(self, inputs: Inputs, scan: Scan) -> Any:
        """Whole-model facts that `merge` needs, gathered in streaming passes."""
        return None

    @abstractmethod
    def merge(self, slot: Slot, state: Any) -> torch.Tensor:
        """The merged slice, in the shape and dtype the slot's tensors have. May reuse a tensor that `models` gave."""

    def remarks(self, inputs: Inputs, state: Any) -> list[str]:
        """What a reader of the report must know of this merge and cannot see in the hyperparameters."""
        return []

    def fuse(self, inputs: Inputs) -> Fused:
        from fusion_bench.method.engine import MergedCheckpoint

        merged = MergedCheckpoint(self, inputs)
        return PerTask({name: merged.for_task(name) for name in inputs.models}) if self.per_task else Merged(merged)


@dataclass(frozen=True)
class CheckpointMethod(ModelFusionAlgorithm):
    """An algorithm that picks or changes whole checkpoints: names or layers."""

    @abstractmethod
    def transform(self, inputs: Inputs) -> Checkpoint:
        """The resulting checkpoint."""

    def fuse(self, inputs: Inputs) -> Fused:
        from fusion_bench.checkpoint.views import Cast, Finite

        made: Checkpoint = Finite(self.transform(inputs), "the model")
        return Merged(made if inputs.dtype is None else Cast(made, inputs.dtype))


def adopt(method: ModelFusionAlgorithm, inner: ModelFusionAlgorithm, *facts: str) -> None:
    """Makes class facts of the method inside those of the one around it, which holds for this value alone."""
    for fact in facts:
        object.__setattr__(method, fact, getattr(inner, fact))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
