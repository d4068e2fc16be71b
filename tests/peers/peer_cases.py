"""The table of what must agree: a method of the library beside a function of another package.

A row comes under test when the registry holds its method, so rows may stand here before the method is written.
To add one, append a `Case`: hyperparameters of ours and of theirs, both as functions of the number of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from peer_inputs import KINDS, SHAPES, State, named, states

from fusion_bench.api import fuse
from fusion_bench.build import build
from fusion_bench.errors import FusionError
from fusion_bench.method import method_class, method_modules

Parameters = Mapping[str, Any]
EXACT: Mapping[str, float] = {"float64": 1e-12, "float32": 1e-6}
POSITIVE = (1.0, 0.5, 2.0, 0.25, 1.5)
SIGNED = (1.0, -0.5, 2.0, -1.5, 0.75)
DENSITIES = (0.1, 0.29, 0.5, 0.85, 1.0)


@dataclass(frozen=True)
class Run:
    """How many models, in which dtype."""

    count: int
    dtype: str

    @property
    def id(self) -> str:
        return f"{self.count}-{self.dtype}"


@dataclass(frozen=True)
class Case:
    """One row: `ours` and `theirs` give the hyperparameters for a number of models.

    `base`: both get a base; neither does; or the first model is what the peer calls the base (ours takes it as
    a model). `excuses`: pattern of tensor names -> why they may differ. `draws`: hyperparameters with which our method,
    given one model and a base of zeros, leaves zeros exactly where it drops; the peer is made to draw the same.
    `one_by_one`: ours fuses each tensor for itself. `names`: tensor names and shapes, in the place of kinds and shapes.
    Of a method with one result a task both give the results stacked, in the order of the models.
    """

    id: str
    peer: Literal["mergekit", "fusion_bench"]
    key: str
    function: str
    ours: Callable[[int], Parameters]
    theirs: Callable[[int], Parameters]
    base: Literal["given", "none", "first"] = "given"
    counts: tuple[int, ...] = (1, 2, 3, 4, 5)
    dtypes: tuple[str, ...] = ("float64", "float32")
    kinds: tuple[str, ...] = KINDS
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    tolerance: Mapping[str, float] = field(default_factory=lambda: EXACT)
    excuses: Mapping[str, str] = field(default_factory=dict)
    draws: Callable[[int], Parameters] | None = None
    one_by_one: bool = False
    names: Mapping[str, tuple[int, ...]] | None = None

    @property
    def runs(self) -> list[Run]:
        return [Run(count, dtype) for count in self.counts for dtype in self.dtypes]

    def inputs(self, run: Run) -> tuple[State, dict[str, State]]:
        """The base and the models by name."""
        names = named(self.kinds, self.shapes) if self.names is None else dict(self.names)
        base, models = states(run.count, getattr(torch, run.dtype), names)
        return base, {f"m{i}": model for i, model in enumerate(models)}

    def question(self, run: Run) -> dict[str, Any]:
        """What the peer is asked: function, parameters, tensors by place (``base/…``, ``m0/…``, ``mask/m0/…``)."""
        base, models = self.inputs(run)
        places = {"base": base} if self.base == "given" else {}
        places.update(models)
        if self.draws is not None:
            places.update({f"mask/{name}": mask for name, mask in self._masks(base, models).items()})
        return {
            "function": self.function,
            "parameters": self.theirs(run.count),
            "models": list(models),
            "base": {"given": "base", "first": "m0", "none": None}[self.base],
            "tensors": {f"{place}/{name}": tensor for place, state in places.items() for name, tensor in state.items()},
        }

    def fused(self, run: Run) -> tuple[State, dict[str, str]]:
        """Our result, and our error messages for the tensors that we refuse."""
        base, models = self.inputs(run)
        method = build(method_class(self.key), self.ours(run.count), "method")
        on = base if self.base == "given" else None
        if not self.one_by_one:
            try:
                return _fused(method, models, on), {}
            except FusionError:
                pass
        out: State = {}
        errors: dict[str, str] = {}
        for name in base:
            one = None if on is None else {name: on[name]}
            try:
                out.update(_fused(method, {key: {name: model[name]} for key, model in models.items()}, one))
            except FusionError as error:
                errors[name] = str(error)
        return out, errors

    def excused(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.excuses)

    def _masks(self, base: State, models: Mapping[str, State]) -> dict[str, State]:
        assert self.draws is not None
        method = build(method_class(self.key), self.draws(len(models)), "method")
        masks = {}
        for key, model in models.items():
            deltas = {name: tensor - base[name] for name, tensor in model.items()}
            kept = fuse(method, {key: deltas}, {name: torch.zeros_like(tensor) for name, tensor in base.items()})
            masks[key] = {name: (kept[name] != 0).to(tensor.dtype) for name, tensor in deltas.items()}
        return masks


def _fused(method: Any, models: Mapping[str, State], base: State | None) -> State:
    fused = fuse(method, models, base)
    if not getattr(method, "per_task", False):
        return dict(fused)
    return {name: torch.stack([fused[task][name] for task in models]) for name in next(iter(models.values()))}


def first(values: tuple[float, ...]) -> Callable[[int], list[float]]:
    return lambda count: list(values[:count])


def equal(count: int) -> list[float]:
    return [1.0] * count


WEIGHTS: Mapping[str, Callable[[int], list[float]]] = {
    "equal": equal,
    "positive": first(POSITIVE),
    "signed": first(SIGNED),
}
ORDER = {"repeated:*": "equal magnitudes at the threshold: which of them are kept is left open by the peer"}


def _linear() -> list[Case]:
    rows = [
        Case("simple_average", "mergekit", "simple_average", "linear", lambda n: {}, lambda n: {"weight": 1.0}, "none")
    ]
    for label, of in WEIGHTS.items():
        for normalize in (True, False):
            rows.append(
                Case(
                    f"weighted_average-{label}-{'normalized' if normalize else 'plain'}",
                    "mergekit", "weighted_average", "linear",
                    lambda n, of=of, normalize=normalize: {"weights": of(n), "normalize": normalize},
                    lambda n, of=of, normalize=normalize: {"weight": of(n), "normalize": normalize},
                    "none",
                )
            )  # fmt: skip
    for factor in (0.3, 1.0, -0.5):
        rows.append(
            Case(
                f"task_arithmetic-weight={factor}", "mergekit", "task_arithmetic", "task_arithmetic",
                lambda n, f=factor: {"scaling_factor": f}, lambda n, f=factor: {"weight": f},
            )
        )  # fmt: skip
        rows.append(
            Case(
                f"task_arithmetic-lambda={factor}", "mergekit", "task_arithmetic", "task_arithmetic",
                lambda n, f=factor: {"scaling_factor": f}, lambda n, f=factor: {"weight": 1.0, "lambda": f},
            )
        )  # fmt: skip
    rows.append(
        Case(
            "task_arithmetic-normalized", "mergekit", "task_arithmetic", "task_arithmetic",
            lambda n: {"scaling_factor": 0.7 / n}, lambda n: {"weight": 1.0, "lambda": 0.7, "normalize": True},
        )
    )  # fmt: skip
    return rows


def _ties() -> list[Case]:
    rows = []
    for label, of in WEIGHTS.items():
        for density in DENSITIES:
            excuses = {} if density == 1.0 else ORDER
            rows.append(
                Case(
                    f"ties-mergekit-{label}-{density}", "mergekit", "ties_merging", "ties",
                    lambda n, of=of, d=density: {
                        "compat": "mergekit", "density": d, "weights": of(n), "scaling_factor": 0.7
                    },
                    lambda n, of=of, d=density: {"density": d, "weight": of(n), "lambda": 0.7},
                    excuses=excuses,
                )
            )  # fmt: skip
            rows.append(
                Case(
                    f"ties-peft-{label}-{density}", "mergekit", "ties_merging", "peft.ties",
                    lambda n, of=of, d=density: {
                        "compat": "peft", "density": d, "weights": of(n), "scaling_factor": 1.0
                    },
                    lambda n, of=of, d=density: {"density": d, "weight": of(n)},
                    excuses=excuses,
                )
            )  # fmt: skip
    for label, of in WEIGHTS.items():
        rows.append(
            Case(
                f"ties-sum-{label}", "mergekit", "ties_merging", "ties",
                lambda n, of=of: {
                    "scope": "tensor", "count": "exact", "merge_func": "sum", "zero_sum": "positive",
                    "sign_weights": "weighted", "density": 0.5, "weights": of(n), "scaling_factor": 1.0,
                },
                lambda n, of=of: {"density": 0.5, "weight": of(n), "normalize": False},
                excuses={**ORDER, "*:1": "keeps one entry at least", "*:scalar": "keeps one entry at least"},
            )
        )  # fmt: skip
    for share in (20, 50, 90):
        for function in ("sum", "mean", "max"):
            rows.append(
                Case(
                    f"ties-authors-{share}-{function}", "fusion_bench", "ties_merging", "ties_merging",
                    lambda n, share=share, function=function: {
                        "compat": "authors", "threshold": share, "merge_func": function, "scaling_factor": 1.0
                    },
                    lambda n, share=share, function=function: {"threshold": share, "merge_func": f"dis-{function}"},
                    one_by_one=True,
                )
            )  # fmt: skip
    return rows


def _under_test(rows: list[Case]) -> dict[str, Case]:
    assert len({case.id for case in rows}) == len(rows), "two rows of one name"
    return {case.id: case for case in rows if case.key in method_modules()}


from peer_cases_more import more, sampled  # noqa: E402 - they are made of what stands above
from peer_cases_tasks import selections  # noqa: E402

CASES = _under_test([*_linear(), *_ties(), *more(), *selections()])
SAMPLED = _under_test(sampled())
