"""Trim, elect sign, disjoint merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError, unknown
from fusion_bench.method.base import Inputs, Scan, Slot, TensorMethod
from fusion_bench.method.weights import Weights, by_model

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.align import Alignment
    from fusion_bench.method.trimming import Trim

ZeroRule = Literal["none", "positive", "negative"]
Preset = Literal["none", "authors", "mergekit", "peft"]

_PRESETS: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "authors": {"scope": "model", "count": "authors", "zero_sum": "majority"},
    "mergekit": {
        "scope": "tensor", "count": "exact", "merge_func": "mean", "zero_sum": "positive",
        "sign_weights": "weighted", "normalize_by": "weights",
    },
    "peft": {
        "scope": "tensor", "count": "exact", "merge_func": "mean", "zero_sum": "positive",
        "sign_weights": "unweighted", "normalize_by": "count",
    },
}  # fmt: skip


@dataclass(frozen=True)
class TiesMerging(TensorMethod):
    r"""$\theta = \theta_0 + \lambda \tau_m$ after three steps on the task vectors $\tau_i = \theta_i - \theta_0$.

    *Trim*: of each $\tau_i$ keep the share `threshold` of largest magnitude, exactly $\lfloor k d \rfloor$ of $d$
    entries; equal magnitudes at the threshold are kept in the order of sorted names and flat index.
    *Elect*: $\gamma = \mathrm{sign}(\sum_i \hat\tau_i)$ for each coordinate.
    *Merge*: sum, mean or largest of the entries whose sign is $\gamma$.

    Trimming spans the whole model by default (`scope`), as in the paper; two streaming reads do it in bounded memory.
    `merge_func` defaults to the sum, which the FusionBench tables with λ = 0.3 presuppose; the paper uses the mean
    with λ near 1. `compat` sets the switches in which published implementations differ. A threshold that falls on
    magnitude 0 (sparse task vectors, as of adapters) trims nothing.

    Source: TIES-Merging, arXiv 2306.01708.
    """

    requirement = "hyperparameter search"
    source = "TIES-Merging, arXiv 2306.01708"
    needs_base = True
    identity: ClassVar[Mapping[str, Mapping[str, Any] | None]] = {
        "one": {"threshold": 100.0, "scaling_factor": 1.0},
        "equal": {"threshold": 100.0, "scaling_factor": 1.0, "merge_func": "mean"},
    }

    scaling_factor: float = hyper(0.3, "the factor λ on the merged task vector")
    threshold: float = hyper(20.0, "kept share: percent above 1 (20), a fraction up to 1 (0.2); 1 or 100 keeps all",
                             above=0.0, high=100.0)  # fmt: skip
    density: float | None = hyper(None, "kept share as a fraction; the same as threshold", above=0.0, high=1.0)
    merge_func: Literal["sum", "mean", "max"] = hyper("sum", "what becomes of the entries that agree in sign")
    scope: Literal["model", "tensor"] = hyper("model", "trim over the whole model or each tensor for itself")
    count: Literal["exact", "authors"] = hyper("exact", "keep int(k*d) entries, or int(k*d)+1 with all ties (authors)")
    zero_sum: Literal["none", "positive", "majority"] = hyper(
        "none", "where the elected total is exactly 0: no update, the positive entries, or the model's majority sign"
    )
    sign_weights: Literal["unweighted", "weighted"] = hyper("unweighted", "whether weights take part in the election")
    normalize_by: Literal["weights", "count"] = hyper(
        "weights", "what a weighted mean divides by: agreeing weights, or the number of agreeing models"
    )
    weights: Weights = hyper(None, "by name ({cola: 0.7, mnli: 0.3}) or in pool order; null: all 1")
    remove_keys: tuple[str, ...] = hyper((), "tensors left as in the base: names or patterns such as *.bias")
    compat: Preset = hyper("none", "the switches of another implementation: authors, mergekit, peft")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in _PRESETS[self.compat].items():
            default = type(self).__dataclass_fields__[name].default
            given = getattr(self, name)
            if given not in (default, value):
                raise ConfigError(
                    f"method.{name}={given} contradicts method.compat={self.compat}, which sets {name}={value}. "
                    f"Leave one of them out."
                )
            object.__setattr__(self, name, value)
        if self.density is not None and self.threshold not in (20.0, self.density, 100 * self.density):
            raise ConfigError(
                f"method.density={self.density} and method.threshold={self.threshold:g} name two different shares. "
                "Give one of them."
            )

    @property
    def kept(self) -> float:
        """The kept share as a fraction."""
        if self.density is not None:
            return self.density
        return self.threshold if self.threshold <= 1 else self.threshold / 100

    @property
    def pointwise(self) -> bool:
        return (self.scope == "model" or self.kept >= 1) and not self.remove_keys

    def holds(self, inputs: Inputs) -> int:
        from fusion_bench.method.selection import held

        return held(inputs, len(inputs.models)) if self.kept < 1 else 0

    def passes(self, inputs: Inputs) -> int:
        return 1 + (self.kept < 1) + (self.zero_sum == "majority")

    def check(self, models: Sequence[str]) -> None:
        weights = by_model(self.weights, models)
        if self.merge_func == "max" and min(weights) < 0:
            raise ConfigError(
                f"method.weights={list(weights)}: merge_func=max takes no negative weights. Use sum or mean."
            )

    def check_tensors(self, alignment: Alignment) -> None:
        for pattern in self.remove_keys:
            if not any(fnmatchcase(name, pattern) for name in alignment.names):
                raise ConfigError(
                    f"method.remove_keys: {unknown('tensor or pattern', pattern, alignment.floating[:20])} "
                    "(Tied tensors are known by the name they are stored under.)"
                )

    def survey(self, inputs: Inputs, scan: Scan) -> tuple[Trim, tuple[float, ...], ZeroRule]:
        from fusion_bench.method.trimming import Trim, find_cuts

        weights = by_model(self.weights, tuple(inputs.models))
        trim = Trim(self.remove_keys)
        if self.kept < 1:
            at_least = 1 if self.compat == "mergekit" else 0
            trim = find_cuts(inputs, scan, self.kept, self.scope, self.count, self.remove_keys, at_least)
        if self.zero_sum == "majority":
            return trim, weights, self._majority(scan, trim, weights)
        return trim, weights, self.zero_sum

    def remarks(self, inputs: Inputs, state: tuple[Trim, tuple[float, ...], ZeroRule]) -> list[str]:
        spared = state[0].untouched(tuple(inputs.models))
        if not spared:
            return []
        return [
            f"trimming had no effect on {', '.join(spared)}: fewer than {100 * self.kept:g} % of the entries differ "
            "from the base, so the threshold falls on 0"
        ]

    def _majority(self, scan: Scan, trim: Trim, weights: tuple[float, ...]) -> ZeroRule:
        # The authors let a balanced model fall to the negative entries: a sign of 0 selects those that are not > 0.
        import torch

        def signs(slot: Slot) -> int:
            if trim.removed(slot.name):
                return 0
            total = self._votes(slot, trim, weights).total
            return int(torch.sign(total).sum(dtype=torch.float64))

        # Their largest entry is multiplied by that sign, so that nothing is left of it.
        majority = sum(scan(signs, "electing the majority sign"))
        if majority == 0 and self.merge_func == "max":
            return "none"
        return "positive" if majority > 0 else "negative"

    def _votes(self, slot: Slot, trim: Trim, weights: tuple[float, ...]) -> Any:
        from fusion_bench.ops import sign

        deltas = (trim.apply(slot, index, delta) for index, delta in enumerate(slot.deltas))
        return sign.collect(
            deltas, weights, self.merge_func, self.sign_weights == "weighted", self.normalize_by == "weights"
        )

    def merge(self, slot: Slot, state: tuple[Trim, tuple[float, ...], ZeroRule]) -> torch.Tensor:
        from fusion_bench.ops import linear, sign

        trim, weights, at_zero = state
        if self.scaling_factor == 0 or trim.removed(slot.name):
            return slot.base.clone()
        delta = sign.elect(self._votes(slot, trim, weights), at_zero)
        return linear.shifted(slot.base, delta, self.scaling_factor)
