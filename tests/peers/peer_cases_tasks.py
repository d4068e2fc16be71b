"""Rows of the table for selections, masks, depth, minima and what else a peer has under another name.

Without a row, since neither package has them: `pcb_merging`; `swudi` with a `fraction` below 1 and `aswudi` where it
leaves directions out; `lines` with `alpha` from the norms; `mlerp` of vectors of different lengths. Without one too:
`emr_merging` of a task whose mask is empty (the peer gives NaN); `iso_cts` where the rounded share of the tasks exceeds
the rank (the peer's common part then has a negative number of directions, and what a slice makes of that comes out).

The class of fusion-bench 0.2.33 for TALL masks is not asked, its functions are: the class compares |θ0 - τi| where the
definition has |τi|, so that the base decides, and refuses modules with parameters.
"""

from __future__ import annotations

from typing import Any

from peer_cases import Case
from peer_cases_more import FULL_RANK, LINE, MATRICES, SPECTRAL
from peer_inputs import llama

# A descent of finite length, and one of finite steps.
SETTLED = {"float64": 1e-9}
FOLLOWED = {"float64": 1e-5}
TALL = ((24, 4), (16, 3), (40, 5))
FIRST = "after the blocks: depth 1 by our definition, the first value of a gradient for the peer"
OUTER = {"model.norm.weight": FIRST, "lm_head.weight": FIRST}


def selections() -> list[Case]:
    """Rows to be compared tensor by tensor."""
    return [*_tasks(), *_elementary(), *_minima(), *_depth()]


def _tasks() -> list[Case]:
    found = [Case("emr_merging", "fusion_bench", "emr_merging", "emr_merging", lambda n: {}, lambda n: {})]
    for scale in (0.2, 0.4, 0.6):
        found.append(
            Case(
                f"tall_mask-{scale}", "fusion_bench", "tall_mask", "tall_mask",
                lambda n, s=scale: {"mask_scale": s, "scaling_factor": 1.0}, lambda n, s=scale: {"scale": s},
            )
        )  # fmt: skip
    for k, scale in ((0, 0.4), (1, 0.4), (2, 0.2), (2, 0.6), (3, 0.4)):
        found.append(
            Case(
                f"consensus-{k}-{scale}", "fusion_bench", "consensus", "consensus",
                lambda n, k=k, s=scale: {"k": k, "mask_scale": s, "scaling_factor": 0.3},
                lambda n, k=k, s=scale: {"k": k, "scale": s, "scaling_factor": 0.3},
            )
        )  # fmt: skip
    return found


def _elementary() -> list[Case]:
    found = []
    for factor in (0.5, 1.0):
        found.append(
            Case(
                f"magmax-{factor}", "fusion_bench", "magmax", "magmax",
                lambda n, f=factor: {"scaling_factor": f}, lambda n, f=factor: {"scaling_factor": f},
            )
        )  # fmt: skip
    for beta in (0.3, -0.5):
        found.append(
            Case(
                f"expo-{beta}", "fusion_bench", "expo", "expo",
                lambda n, b=beta: {"beta": b}, lambda n, b=beta: {"extrapolation_factor": b},
            )
        )  # fmt: skip
    # Of vectors of one length the mean direction is that of the mean: SLERP halfway for two, Multi-SLERP for any.
    for norm in ("max", "mean"):
        ours = {"scope": "tensor", "norm": norm}
        found.append(
            Case(
                f"mlerp-slerp-{norm}", "mergekit", "mlerp", "slerp", lambda n, ours=ours: ours, lambda n: {"t": 0.5},
                "first", counts=(2,), kinds=("same length",), excuses=LINE,
            )
        )  # fmt: skip
        found.append(
            Case(
                f"mlerp-multislerp-{norm}", "mergekit", "mlerp", "multislerp",
                lambda n, ours=ours: ours, lambda n: {"weight": 1.0, "eps": 0.0},
                "none", kinds=("same length", "equal"), excuses=LINE,
            )
        )  # fmt: skip
    found.append(
        Case(
            "mlerp-model", "mergekit", "mlerp", "multislerp", lambda n: {}, lambda n: {"weight": 1.0, "eps": 0.0},
            "none", kinds=("same length",), excuses=LINE, one_by_one=True,
        )
    )  # fmt: skip
    return found


def _minima() -> list[Case]:
    found = []
    for share, factor in ((0.34, 1.0), (0.5, 2.3), (1.0, 1.0), (0.08, 1.0)):
        found.append(
            Case(
                f"cart-{share}", "fusion_bench", "cart", "cart",
                lambda n, s=share, f=factor: {"rank_ratio": s, "residual_scaling": f, "matrix_keys": "all_2d"},
                lambda n, s=share, f=factor: {"share": s, "scaling_factor": f},
                counts=(1, 2, 3, 4), kinds=FULL_RANK, shapes=MATRICES, tolerance={"float64": 1e-11, "float32": 1e-5},
            )
        )  # fmt: skip
    for share in (0.0, 0.2, 0.7):
        for rank in ("numerical", "full"):
            found.append(
                Case(
                    f"iso_cts-{share}-{rank}", "fusion_bench", "iso_cts", "iso_cts",
                    lambda n, f=share, rank=rank: {
                        "matrix_keys": "all_2d", "scaling_factor": 1.0, "common_space_fraction": f, "rank": rank,
                    },
                    lambda n, f=share: {"common_space_fraction": f}, counts=(1, 2, 3, 4, 5) if share else (1, 2, 3),
                    kinds=FULL_RANK, shapes=((6, 6), (12, 8), (9, 10)), tolerance=SPECTRAL,
                )
            )  # fmt: skip
    descents: dict[str, Any] = {"dtypes": ("float64",), "kinds": ("random", "zero base"), "counts": (2, 3)}
    settled = {"learning_rate": 0.15, "momentum": 0.95, "iter_num": 2000}
    found.append(
        Case(
            "wudi-exact", "fusion_bench", "wudi", "minimised",
            lambda n: {"matrix_keys": "all_2d", "solver": "exact"}, lambda n: settled,
            shapes=((5, 3), (6, 6), (12, 8)), tolerance=SETTLED, **descents,
        )
    )  # fmt: skip
    # Stacks so tall that the spectrum is flat: every direction is among the effective ones.
    found.append(
        Case(
            "aswudi-all", "fusion_bench", "aswudi", "minimised",
            lambda n: {"matrix_keys": "all_2d"}, lambda n: {**settled, "iter_num": 1200},
            shapes=TALL, tolerance=SETTLED, **descents,
        )
    )  # fmt: skip
    for time in (1.0, 3.0):
        found.append(
            Case(
                f"swudi-{time}", "fusion_bench", "swudi", "descended",
                lambda n, t=time: {"matrix_keys": "all_2d", "time": t, "fraction": 1.0},
                lambda n, t=time: {"time": t, "iter_num": 250},
                shapes=MATRICES, tolerance=FOLLOWED, **descents,
            )
        )  # fmt: skip
    return found


def _depth() -> list[Case]:
    """Values that depend on names and depth: mergekit takes them from its configuration."""

    def case(id: str, key: str, function: str, ours: Any, theirs: Any, layers: int = 4, **more: Any) -> Case:
        return Case(
            id, "mergekit", key, f"yaml.{function}", lambda n: ours, lambda n: theirs,
            counts=(1, 3), names=llama(layers), **more,
        )  # fmt: skip

    arithmetic = {"name": "task_arithmetic", "scaling_factor": 1.0}
    ties = {"name": "ties_merging", "compat": "mergekit", "density": 0.5, "scaling_factor": 0.7}
    found = []
    for alpha, beta, layers in ((0.2, 0.6, 4), (0.8, -0.5, 3), (0.5, 0.5, 2)):
        found.append(
            case(
                f"lines-{alpha}-{beta}", "lines", "task_arithmetic",
                {"alpha": alpha, "beta": beta, "inner": arithmetic},
                {"weight": 1.0, "lambda": [alpha, alpha + beta]}, layers,
            )
        )  # fmt: skip
    found.append(
        case(
            "lines-ties", "lines", "ties", {"alpha": 0.1, "beta": 0.9, "inner": {**ties, "scaling_factor": 1.0}},
            {"weight": 1.0, "density": 0.5, "lambda": [0.1, 1.0]},
        )
    )  # fmt: skip
    by_words = [
        {"filter": "mlp", "value": [0.2, 0.8, 1.0]}, {"filter": "layers.1.", "value": 0.9}, {"value": 0.3}
    ]  # fmt: skip
    found.append(
        case(
            "by_name-words", "by_name", "task_arithmetic",
            {
                "inner": {**arithmetic, "scaling_factor": 0.3},
                "rules": [{"filter": r["filter"], "scaling_factor": r["value"]} for r in by_words if "filter" in r],
            },
            {"weight": 1.0, "lambda": by_words},
        )
    )  # fmt: skip
    found.append(
        case(
            "by_name-depth", "by_name", "task_arithmetic",
            {"inner": arithmetic, "rules": [{"scaling_factor": [0.0, 0.5, 0.1, 1.0, -1.0]}]},
            {"weight": 1.0, "lambda": [0.0, 0.5, 0.1, 1.0, -1.0]}, excuses=OUTER,
        )
    )  # fmt: skip
    found.append(
        case(
            "by_name-ties", "by_name", "ties",
            {
                "inner": ties,
                "rules": [{"filter": "mlp", "density": [0.9, 0.1]}, {"filter": "self_attn", "scaling_factor": 1.5}],
            },
            {
                "weight": 1.0, "density": [{"filter": "mlp", "value": [0.9, 0.1]}, {"value": 0.5}],
                "lambda": [{"filter": "self_attn", "value": 1.5}, {"value": 0.7}],
            },
        )
    )  # fmt: skip
    return found
