"""What a fusion algorithm is given: aligned checkpoints, slices of them, passes over them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fusion_bench.checkpoint.structure import Structure

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.align import Alignment
    from fusion_bench.checkpoint.base import Checkpoint, Run
    from fusion_bench.progress import Progress

Granularity = Literal["element", "row", "tensor"]

# Anonymous memory that a run may take, torch included.
DEFAULT_BUDGET = 800 * 10**6


@dataclass(frozen=True)
class Inputs:
    """Checkpoints that are known to align, what their layers are, the seed, the means to work.

    `budget`: bytes of anonymous memory; `device`: where slices are computed; `dtype`: of the result's floating tensors
    in safetensors spelling, None for the reference's.
    """

    models: Mapping[str, Checkpoint]
    base: Checkpoint | None
    alignment: Alignment
    seed: int
    threads: int
    progress: Progress
    dtype: str | None = None
    structure: Structure = field(default_factory=Structure)
    budget: int = DEFAULT_BUDGET
    device: str = "cpu"

    @property
    def reference(self) -> Checkpoint:
        """The checkpoint whose names, shapes and dtypes the result keeps: the base, else the first model."""
        return self.base if self.base is not None else next(iter(self.models.values()))

    def only(self, names: Collection[str]) -> Inputs:
        """These inputs as if the models had the named tensors alone."""
        infos = {name: info for name, info in self.alignment.infos.items() if name in names}
        kept = tuple(name for name in self.alignment.names if name in infos)
        return replace(self, alignment=replace(self.alignment, names=kept, infos=infos))


class Slot(Protocol):
    """One slice of one tensor, of the base and of every model, in the computing dtype (float32 or wider).

    Its tensors are 1-D with granularity ``element``, rows x row length with ``row`` and of the tensor's own shape with
    ``tensor``. `name`: the tensor's; empty where a pointwise method is given several small tensors as one (`run` tells
    them). `start` and `stop`: entries of the flattened tensor; `index`: number of the slice in the whole model;
    `covers`: entries that this piece stands for; `task`: the model whose task is merged for, in methods that give one
    result a task.
    """

    name: str
    index: int
    run: Run
    shape: tuple[int, ...]
    start: int
    stop: int
    covers: int
    model_names: tuple[str, ...]
    task: str | None
    seed: int

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
