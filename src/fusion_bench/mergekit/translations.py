"""What each merge method of mergekit is here: a method with the hyperparameters that hold for a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion_bench.build import build
from fusion_bench.errors import ConfigError

if TYPE_CHECKING:
    from fusion_bench.method.base import TensorMethod


@dataclass(frozen=True)
class Chosen:
    """The values that hold for one tensor: shared ones by name, and per model (without the base) by name."""

    shared: Mapping[str, Any]
    each: tuple[Mapping[str, Any], ...]
    based: bool

    def of(self, name: str) -> tuple[float, ...]:
        """One value a model."""
        return tuple(values[name] for values in self.each)

    def share(self, name: str) -> tuple[float, ...]:
        """Kept shares: below 0 nothing is kept, above 1 all, as in mergekit."""
        return tuple(min(1.0, max(0.0, value)) for value in self.of(name))


def linear(values: Chosen) -> TensorMethod:
    weights, normalize = values.of("weight"), values.shared["normalize"]
    if normalize and sum(weights) == 0:
        raise ConfigError(
            f"weight: {_listed(weights)} sum to 0 and cannot be normalized. Change a weight, or set normalize: false."
        )
    return _method("weighted_average", weights=weights, normalize=normalize)


def passthrough(values: Chosen) -> TensorMethod:
    return _method("weighted_average", weights=values.of("scale"), normalize=False)


def slerp(values: Chosen) -> TensorMethod:
    return _method("slerp", t=values.shared["t"])


def nuslerp(values: Chosen) -> TensorMethod:
    _sum_of(values.of("weight"))
    by = "tensor"
    if not values.shared["nuslerp_flatten"]:
        # What mergekit calls row-wise takes the angle along the first dimension: of columns.
        by = "column" if values.shared["nuslerp_row_wise"] else "row"
    return _method("nuslerp", weights=values.of("weight"), by=by, of=_of(values), linear_above=1.0)


def multislerp(values: Chosen) -> TensorMethod:
    whole = _sum_of(values.of("weight"))
    if not values.shared["normalize_weights"] and abs(whole - 1) > 1e-9:
        raise ConfigError(
            f"normalize_weights: false with weights that sum to {whole:g} is not supported. Give weights that sum to "
            "1, or leave normalize_weights out."
        )
    if values.shared["eps"] > 1e-6:
        raise ConfigError(
            f"eps: {values.shared['eps']:g} is not supported: above 1e-6 it is no mere guard. Leave it out."
        )
    return _method("multislerp", weights=values.of("weight"), of=_of(values))


def karcher(values: Chosen) -> TensorMethod:
    return _method("karcher", iterations=int(values.shared["max_iter"]), tolerance=values.shared["tol"])


def task_arithmetic(values: Chosen) -> TensorMethod:
    return _summed(values)


def ties(values: Chosen) -> TensorMethod:
    from fusion_bench.mergekit.edits import Trimmed

    densities, inner = values.share("density"), _elected(values)
    if min(densities) >= 1:
        return inner
    return _rescaled(values, Trimmed(inner=inner, densities=densities))


def dare_linear(values: Chosen) -> TensorMethod:
    return _dare(values, _summed(values))


def dare_ties(values: Chosen) -> TensorMethod:
    return _dare(values, _elected(values))


def breadcrumbs(values: Chosen) -> TensorMethod:
    return _breadcrumbs(values, _summed(values))


def breadcrumbs_ties(values: Chosen) -> TensorMethod:
    return _breadcrumbs(values, _elected(values))


def della(values: Chosen) -> TensorMethod:
    return _della(values, _elected(values))


def della_linear(values: Chosen) -> TensorMethod:
    return _della(values, _summed(values))


def sce(values: Chosen) -> TensorMethod:
    return _method("sce", select_topk=values.shared["select_topk"], scaling_factor=1.0)


def model_stock(values: Chosen) -> TensorMethod:
    return _method("model_stock", filter_wise=values.shared["filter_wise"])


def nearswap(values: Chosen) -> TensorMethod:
    return _method("nearswap", t=values.shared["t"])


def ram(values: Chosen) -> TensorMethod:
    return _method("ram", threshold=values.shared["epsilon"])


def _summed(values: Chosen) -> TensorMethod:
    """The base plus the weighted sum of the task vectors, or their weighted mean."""
    from fusion_bench.mergekit.edits import Weighted

    weights, factor = values.of("weight"), values.shared["lambda"]
    if values.shared["normalize"]:
        factor /= sum(weights) or 1.0  # as in mergekit: weights that sum to 0 are not normalized
    if len(set(weights)) == 1:
        return _method("task_arithmetic", scaling_factor=factor * weights[0])
    return Weighted(inner=_method("task_arithmetic", scaling_factor=factor), factors=weights)


def _elected(values: Chosen) -> TensorMethod:
    """The election of signs and the sum, or the mean, of what agrees."""
    return _method(
        "ties_merging",
        threshold=100.0,
        scope="tensor",
        merge_func="mean" if values.shared["normalize"] else "sum",
        zero_sum="positive",
        sign_weights="weighted",
        normalize_by="weights",
        weights=values.of("weight"),
        scaling_factor=values.shared["lambda"],
    )


def _rescaled(values: Chosen, made: TensorMethod) -> TensorMethod:
    """`made`, whose edits are enlarged to the L1 norm that each task vector had, where that is asked for."""
    from fusion_bench.mergekit.edits import Rescaled
    from fusion_bench.method.wrapping import DeltaWrapper

    if not values.shared["rescale"] or not isinstance(made, DeltaWrapper):
        return made
    return Rescaled(inner=made.inner, around=made)


def _dare(values: Chosen, inner: TensorMethod) -> TensorMethod:
    rescaled: dict[str, Any] = {"rescale": values.shared["rescale"]}
    if values.shared["rescale"]:
        rescaled["rescale_mode"] = "l1"
    return _apart(values, inner, [{"name": "dare", "drop_rate": 1 - d, **rescaled} for d in values.share("density")])


def _breadcrumbs(values: Chosen, inner: TensorMethod) -> TensorMethod:
    pairs = zip(values.share("density"), values.of("gamma"), strict=True)
    return _rescaled(
        values, _apart(values, inner, [{"name": "breadcrumbs", "density": d, "gamma": g} for d, g in pairs])
    )


def _della(values: Chosen, inner: TensorMethod) -> TensorMethod:
    rescaled: dict[str, Any] = {"rescale": values.shared["rescale"]}
    if values.shared["rescale"]:
        rescaled["rescale_mode"] = "l1"
    pairs = zip(values.share("density"), values.of("epsilon"), strict=True)
    return _apart(values, inner, [{"name": "della", "density": d, "epsilon": e, **rescaled} for d, e in pairs])


def _apart(values: Chosen, inner: TensorMethod, edits: Sequence[Mapping[str, Any]]) -> TensorMethod:
    """Each model edited as `edits` say, then merged by `inner`; one wrapper where all are edited alike.

    A model of density 0 is left out: its task vector is 0.
    """
    from fusion_bench.mergekit.edits import Apart, Weighted

    densities = values.share("density")
    if 0.0 in densities:
        factors = tuple(float(density > 0) for density in densities)
        inner = Weighted(inner=inner, factors=factors)
        edits = [{**edit, **_WHOLE[edit["name"]]} if d == 0 else edit for edit, d in zip(edits, densities, strict=True)]
    if all(edit == edits[0] for edit in edits):
        chosen = {key: value for key, value in edits[0].items() if key != "name"}
        return _method(edits[0]["name"], **chosen, inner=inner)
    return Apart(inner=inner, edits=tuple(_method(**_keyed(edit)) for edit in edits))


_WHOLE: Mapping[str, Mapping[str, Any]] = {
    "dare": {"drop_rate": 0.0},
    "della": {"density": 1.0},
    "breadcrumbs": {"density": 1.0},
}
"""By method, what makes its edit of a model that is left out cheap."""


def _keyed(edit: Mapping[str, Any]) -> dict[str, Any]:
    return {"key": edit["name"], **{name: value for name, value in edit.items() if name != "name"}}


def _method(key: str, **values: Any) -> TensorMethod:
    from fusion_bench.method import method_class
    from fusion_bench.method.base import TensorMethod

    made = build(method_class(key), values, "method")
    assert isinstance(made, TensorMethod)
    return made


def _of(values: Chosen) -> str:
    return "deltas" if values.based else "models"


def _sum_of(weights: Sequence[float]) -> float:
    whole = sum(weights)
    if whole == 0:
        raise ConfigError(f"weight: {_listed(weights)} sum to 0 and cannot be normalized. Change a weight.")
    return whole


def _listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)
