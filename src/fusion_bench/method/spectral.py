"""What the methods on singular vectors share: which tensors are matrices to them, and what becomes of the others."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from fusion_bench.build import hyper
from fusion_bench.method.base import Granularity, Inputs, Scan, Slot, TensorMethod
from fusion_bench.method.finite import require_finite

if TYPE_CHECKING:
    import torch

MatrixKeys = Literal["linear", "all_2d"]

MATRIX_KEYS_DOC: Final = "linear: weights of linear layers; all_2d: every 2-D tensor but text_projection"
_FUSED: Final = re.compile(r"(^|[._])(\w*qkv\w*|c_attn|query_key_value|in_proj_weight|in_proj)([._]|$)", re.IGNORECASE)
_SPLIT: Final = re.compile(r"(^|[._])(q|k|v|query|key|value|[qkv]_proj|[qkv]_lin|to_[qkv])\.weight$")


@dataclass(frozen=True)
class Matrices:
    """The tensors that are merged as matrices, and those of them that are stored in x out."""

    names: frozenset[str]
    turned: frozenset[str]


def matrices_of(inputs: Inputs, keys: MatrixKeys) -> Matrices:
    """The matrices that `keys` chooses among the inputs' tensors."""
    names = frozenset(name for name in inputs.alignment.floating if is_matrix(name, inputs, keys))
    return Matrices(names, names & inputs.structure.transposed)


def is_matrix(name: str, inputs: Inputs, keys: MatrixKeys) -> bool:
    """Whether tensor `name` is merged as a matrix; an empty one never is."""
    info = inputs.alignment.infos[name]
    if len(info.shape) != 2 or not info.numel:
        return False
    return name in inputs.structure.linear if keys == "linear" else "text_projection" not in name


def cut(name: str, inputs: Inputs, keys: MatrixKeys) -> Granularity:
    """Matrices stay whole, other tensors may be cut anywhere."""
    return "tensor" if is_matrix(name, inputs, keys) else "element"


def decomposition(rows: int, columns: int) -> float:
    """What the singular vectors or the polar factor of a matrix take, in matrices of float32: by the Gram matrix of its
    shorter side, or by the decomposition that stands in for it."""
    return 6 + 10 * min(rows, columns) / max(rows, columns)


def interference_buffers(outputs: int, inputs: int) -> float:
    """What the sums of :mod:`fusion_bench.ops.interference` and the eigenvectors of C take, in matrices of float32."""
    # float64: total, D and two temporaries out x in; C, a Gram matrix, eigenvectors, work space, two products in x in.
    return 8 + 16 * inputs / outputs


def told(inputs: Inputs, keys: MatrixKeys) -> list[str]:
    """How many tensors were matrices, and whether attention keeps q, k and v in one matrix, which changes every result
    that is made of singular vectors."""
    names = matrices_of(inputs, keys).names
    count = len(inputs.alignment.floating)
    found = [f"{len(names)} of {count} tensors are merged as matrices (matrix_keys={keys})"]
    fused, split = (sum(bool(form.search(name)) for name in names) for form in (_FUSED, _SPLIT))
    if fused or split:
        forms = ("fused into one matrix", fused), ("split into matrices of their own", split)
        found.append("attention q, k, v are " + " or ".join(f"{how} ({many} tensors)" for how, many in forms if many))
    return found


class Deltas:
    """The task vectors of one matrix as out x in, read anew at each turn; each is valid until the next is asked for.

    NonFiniteError names the model and the tensor where one is not finite.
    """

    def __init__(self, slot: Slot, turned: bool) -> None:
        self._slot, self._turned = slot, turned

    def __len__(self) -> int:
        return len(self._slot.model_names)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for model, delta in enumerate(self._slot.deltas):
            finite = require_finite(self._slot, model, delta)
            yield finite.T if self._turned else finite

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        rows, columns = self._slot.shape
        return (columns, rows) if self._turned else (rows, columns)

    @property
    def exact(self) -> bool:
        """Whether the task vectors are float64, so that a decomposition must be good to its last digits."""
        import torch

        return self._slot.base.dtype == torch.float64


@dataclass(frozen=True)
class SpectralMethod(TensorMethod):
    r"""$\theta = \theta_0 + \lambda \Delta$: $\Delta$ from `combine` for matrices, the mean of $\tau_i$ elsewhere."""

    needs_base = True

    scaling_factor: float = hyper(1.0, "the factor λ on the merged task vector")
    matrix_keys: MatrixKeys = hyper("linear", MATRIX_KEYS_DOC)

    @abstractmethod
    def combine(self, deltas: Deltas) -> torch.Tensor:
        """The merged delta of one matrix, out x in; any floating dtype."""

    @abstractmethod
    def buffers(self, outputs: int, inputs: int, models: int) -> float:
        """What `combine` holds at most, in matrices of the computing dtype. A float64 matrix counts as two."""

    def granularity(self, name: str, inputs: Inputs) -> Granularity:
        return cut(name, inputs, self.matrix_keys)

    def workspace(self, name: str, inputs: Inputs) -> float:
        if not is_matrix(name, inputs, self.matrix_keys):
            return 9.0
        rows, columns = inputs.alignment.infos[name].shape
        if name in inputs.structure.transposed:
            rows, columns = columns, rows
        # The base and a model's slice, as stored and as computed: 4.
        return 4 + self.buffers(rows, columns, len(inputs.models))

    def survey(self, inputs: Inputs, scan: Scan) -> Matrices:
        return matrices_of(inputs, self.matrix_keys)

    def merge(self, slot: Slot, state: Matrices) -> torch.Tensor:
        from fusion_bench.ops import linear

        base = slot.base
        if self.scaling_factor == 0:
            return base.clone()
        if slot.name not in state.names:
            return linear.shifted(base, linear.mean(slot.deltas, len(slot.model_names)), self.scaling_factor)
        turned = slot.name in state.turned
        delta = self.combine(Deltas(slot, turned))
        return linear.shifted(base, (delta.T if turned else delta).to(base.dtype), self.scaling_factor)

    def remarks(self, inputs: Inputs, state: Any) -> list[str]:
        return told(inputs, self.matrix_keys)
