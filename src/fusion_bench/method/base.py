"""What a fusion algorithm is: a small frozen value whose fields are its hyperparameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from fusion_bench.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.align import Alignment
    from fusion_bench.checkpoint.base import Checkpoint
    from fusion_bench.progress import Progress

Granularity = Literal["element", "tensor"]


@dataclass(frozen=True)
class Merged:
    """One checkpoint for all tasks."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class PerTask:
    """One checkpoint a task: the task must be known when the model is used."""

    checkpoints: Mapping[str, Checkpoint]


@dataclass(frozen=True)
class Members:
    """Several models that stay apart, by name."""

    checkpoints: Mapping[str, Checkpoint]


@dataclass(frozen=True)
class Built:
    """A checkpoint whose forward pass is rebuilt by the registered `wrapper`."""

    checkpoint: Checkpoint
    wrapper: str


Fused = Merged | PerTask | Members | Built


@dataclass(frozen=True)
class Inputs:
    """What an algorithm is given: checkpoints that are known to align, the seed, the means to work."""

    models: Mapping[str, Checkpoint]
    base: Checkpoint | None
    alignment: Alignment
    seed: int
    threads: int
    progress: Progress
    dtype: str | None = None

    @property
    def reference(self) -> Checkpoint:
        """The checkpoint whose names, shapes and dtypes the result keeps: the base, else the first model."""
        return self.base if self.base is not None else next(iter(self.models.values()))


class Slot(Protocol):
    """One slice of one tensor, of the base and of every model, in the computing dtype (float32 or wider).

    With granularity ``element`` tensors are 1-D slices of the flattened tensor; with ``tensor`` they have its shape.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    start: int
    stop: int
    covers: int
    model_names: tuple[str, ...]

    @property
    def base(self) -> torch.Tensor:
        """The base's slice. Must not be modified."""

    @property
    def models(self) -> Iterator[torch.Tensor]:
        """The models' slices in pool order. Each may be modified and is valid until the next is asked for."""

    @property
    def deltas(self) -> Iterator[torch.Tensor]:
        """Model minus base (task vectors) in pool order; the same rules as for `models`."""


class Scan(Protocol):
    """A streaming pass over the floating tensors, or those in `names`: `visit` of every slot, results in slot order.

    With ``sample=True`` each slot is only a short piece that stands for `covers` entries, so the pass costs little.
    """

    def __call__(
        self, visit: Callable[[Slot], Any], what: str, names: Collection[str] | None = None, sample: bool = False
    ) -> list[Any]: ...


@dataclass(frozen=True)
class ModelFusionAlgorithm(ABC):
    """A fusion algorithm (arXiv 2406.03280, section 3.2). Subclasses are final, frozen dataclasses.

    Class facts: `category`; `requirement` as in Table 1 of that paper; `source`, the paper that defines it; whether
    the order of models matters not (`symmetric`), draws are made (`random`), a base is needed (`needs_base`) or
    the models are looked at at all (`reads_models`);
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
    """An algorithm that merges slice by slice, after any number of streaming passes with bounded state."""

    @property
    def granularity(self) -> Granularity:
        """What may be cut: ``element`` lets a slot be any slice, ``tensor`` asks for whole tensors."""
        return "element"

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

        return Merged(MergedCheckpoint(self, inputs))


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
