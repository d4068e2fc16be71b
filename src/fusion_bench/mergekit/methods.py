"""The merge methods of mergekit: their parameters, and the method of this package that each one is.

To add a method, add an entry to `KINDS`. It comes into use when the registry holds the method that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fusion_bench.mergekit import translations as to
from fusion_bench.mergekit.values import Kind

if TYPE_CHECKING:
    from fusion_bench.method.base import TensorMethod

Base = Literal["required", "optional", "ordinary"]

REQUIRED: Any = object()
"""In the place of a default: there is none."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: `each` input has its own, or all inputs share one value."""

    kind: Kind
    default: Any
    each: bool = False


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: `key` of the method it is here; what the base is to it; how many models it takes beside a base
    that is not an ordinary input; `unused` parameters, which it takes and does not look at."""

    key: str
    build: Callable[[to.Chosen], TensorMethod]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    base: Base = "required"
    models: tuple[int, int | None] = (1, None)
    unused: frozenset[str] = frozenset()


def _shared(**parameters: tuple[Kind, Any]) -> dict[str, Parameter]:
    return {name.rstrip("_"): Parameter(kind, default) for name, (kind, default) in parameters.items()}


def _each(**parameters: Any) -> dict[str, Parameter]:
    return {name: Parameter("number", default, each=True) for name, default in parameters.items()}


def _deltas(normalize: bool, rescale: bool, **each: Any) -> dict[str, Parameter]:
    """What the methods have in common that sum task vectors."""
    common = _shared(normalize=("truth", normalize), lambda_=("number", 1.0), rescale=("truth", rescale))
    return {**_each(weight=REQUIRED, **each), **common}


# Changes no number in mergekit either: which type masks are held in.
WITHOUT_EFFECT = frozenset({"int8_mask"})

KINDS: Mapping[str, MergeMethod] = {
    "linear": MergeMethod(
        "weighted_average",
        to.linear,
        {**_each(weight=REQUIRED), **_shared(normalize=("truth", True))},
        "ordinary",
    ),
    "passthrough": MergeMethod("weighted_average", to.passthrough, _each(scale=1.0), "ordinary", (1, 1)),
    "slerp": MergeMethod("slerp", to.slerp, _shared(t=("number", REQUIRED)), models=(1, 1)),
    "nuslerp": MergeMethod(
        "nuslerp",
        to.nuslerp,
        {
            **_each(weight=REQUIRED),
            **_shared(nuslerp_flatten=("truth", True), nuslerp_row_wise=("truth", False)),
        },
        "optional",
        (2, 2),
    ),
    "multislerp": MergeMethod(
        "multislerp",
        to.multislerp,
        {**_each(weight=REQUIRED), **_shared(normalize_weights=("truth", True), eps=("number", 1e-8))},
        "optional",
    ),
    "karcher": MergeMethod("karcher", to.karcher, _shared(max_iter=("count", 10.0), tol=("number", 1e-5)), "ordinary"),
    "task_arithmetic": MergeMethod(
        "task_arithmetic", to.task_arithmetic, _deltas(False, False), unused=frozenset({"density"})
    ),
    "ties": MergeMethod("ties_merging", to.ties, _deltas(True, False, density=1.0)),
    "dare_linear": MergeMethod("dare", to.dare_linear, _deltas(False, True, density=1.0)),
    "dare_ties": MergeMethod("dare", to.dare_ties, _deltas(False, True, density=1.0)),
    "breadcrumbs": MergeMethod("breadcrumbs", to.breadcrumbs, _deltas(False, False, density=1.0, gamma=0.01)),
    "breadcrumbs_ties": MergeMethod("breadcrumbs", to.breadcrumbs_ties, _deltas(False, False, density=1.0, gamma=0.01)),
    "della": MergeMethod("della", to.della, _deltas(True, True, density=1.0, epsilon=0.15)),
    "della_linear": MergeMethod("della", to.della_linear, _deltas(False, True, density=1.0, epsilon=0.15)),
    "sce": MergeMethod("sce", to.sce, _shared(select_topk=("number", 1.0)), unused=frozenset({"weight", "density"})),
    "model_stock": MergeMethod("model_stock", to.model_stock, _shared(filter_wise=("truth", False)), models=(2, None)),
    "nearswap": MergeMethod("nearswap", to.nearswap, _shared(t=("number", REQUIRED)), models=(1, 1)),
    "ram": MergeMethod("ram", to.ram, _shared(epsilon=("number", 1e-5))),
}

LACKING: Mapping[str, str] = {
    "arcee_fusion": "Take nearswap, or task_arithmetic.",
    "ramplus_tl": "Take ram.",
}
"""Methods of mergekit that have no counterpart here, and what comes near."""


def supported() -> list[str]:
    """The merge methods that can be run, sorted."""
    from fusion_bench.method import method_modules

    return sorted(name for name, kind in KINDS.items() if kind.key in method_modules())
