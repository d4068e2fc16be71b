"""Other hyperparameters for some tensors, chosen by their names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fusion_bench.build import hyper
from fusion_bench.errors import ConfigError
from fusion_bench.method.assigned import ByTensor
from fusion_bench.method.base import TensorMethod, adopt

if TYPE_CHECKING:
    from fusion_bench.checkpoint.align import Alignment
    from fusion_bench.checkpoint.structure import Structure

_FILTER = "filter"


@dataclass(frozen=True)
class ByName(ByTensor):
    r"""`inner`, with hyperparameters that depend on the tensor: the first rule whose `filter` fits a name changes them.

    ``rules=[{filter: "*.mlp.*", scaling_factor: 0.5}, {filter: self_attn, scaling_factor: [0, 0.5, 1]}]``. A filter is
    a pattern with ``*`` and ``?``, or a word that occurs in the name; a rule without one fits every name. A list in the
    place of a number is a gradient over depth: its values stand evenly from the first block ($d = 0$) to the last
    ($d = 1$) of the tensor's stack and are interpolated linearly between,
    $v(d) = (1 - f) v_k + f v_{k+1}$ with $k + f = d (n - 1)$. Embeddings count as the first block, what follows the
    blocks as the last. Tensors that share their hyperparameters are merged as if they were the whole model, so a
    threshold over the whole model spans them alone.

    Source: Layer-wise coefficients, as in AdaMerging, arXiv 2310.02575.
    """

    requirement = "hyperparameter search"
    source = "Layer-wise coefficients, as in AdaMerging, arXiv 2310.02575"

    inner: TensorMethod = hyper("simple_average", "the method whose hyperparameters are chosen by name")
    rules: tuple[Mapping[str, Any], ...] = hyper(
        (), "hyperparameters by name: [{filter: '*.mlp.*', scaling_factor: 0.5}, …]; the first that fits counts"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_made", {})
        adopt(self, self.inner, "needs_base", "per_task", "model_counts")
        for rule in self.rules:
            self._instance({**rule, **{k: v[0] for k, v in _gradients(rule, self.inner).items()}})

    def check(self, models: Sequence[str]) -> None:
        for rule in [{}, *self.rules]:
            self._instance({**rule, **{k: v[0] for k, v in _gradients(rule, self.inner).items()}}).check(models)

    def check_tensors(self, alignment: Alignment) -> None:
        self.inner.check_tensors(alignment)
        for rule in self.rules:
            if not any(_fits(rule, name) for name in alignment.names):
                some = ", ".join(alignment.floating[:5])
                raise ConfigError(
                    f"method.rules: no tensor fits filter {rule[_FILTER]!r}. Names are like {some}. "
                    "A filter is a word in the name, or a pattern such as *.mlp.*."
                )

    def at(self, name: str, structure: Structure) -> TensorMethod:
        """The inner method with the hyperparameters that hold for tensor `name`."""
        rule = next((rule for rule in self.rules if _fits(rule, name)), None)
        if rule is None:
            return self.inner
        depth = structure.depth(name)
        return self._instance(
            {**rule, **{key: _interpolated(values, depth) for key, values in _gradients(rule, self.inner).items()}}
        )

    def _instance(self, rule: Mapping[str, Any]) -> TensorMethod:
        made: dict[str, TensorMethod] = self._made  # type: ignore[attr-defined]
        values = {**self.inner.plain(), **{k: v for k, v in rule.items() if k != _FILTER}}
        key = json.dumps(values, sort_keys=True, default=str)
        if key not in made:
            method = TensorMethod.from_plain(values, "method.rules")
            assert isinstance(method, TensorMethod)
            made[key] = method
        return made[key]


def _fits(rule: Mapping[str, Any], name: str) -> bool:
    pattern = str(rule.get(_FILTER, "*"))
    return fnmatchcase(name, pattern) if set("*?[") & set(pattern) else pattern in name


def _gradients(rule: Mapping[str, Any], inner: TensorMethod) -> dict[str, list[float]]:
    """The hyperparameters of a rule that are lists although the method takes a number there."""
    given = {key: value for key, value in rule.items() if isinstance(value, (list, tuple)) and value}
    return {key: list(value) for key, value in given.items() if isinstance(getattr(inner, key, None), (int, float))}


def _interpolated(values: Sequence[float], depth: float) -> float:
    place = depth * (len(values) - 1)
    low = min(int(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    share = place - low
    return (1 - share) * values[low] + share * values[high]
