"""Rows of the table for sparsification, spheres and spectra."""

from __future__ import annotations

from typing import Any

from peer_cases import DENSITIES, ORDER, WEIGHTS, Case

# mergekit draws, and multiplies by what it drew, in float32 whatever the inputs are.
SINGLE = {"float64": 1e-6, "float32": 1e-6}
SPECTRAL = {"float64": 1e-11, "float32": 1e-4}
FULL_RANK = ("random", "near", "zero base")
MATRICES = ((5, 3), (3, 5), (6, 6), (12, 8))
ZERO = {"first zero:*": "a zero vector: linear by our definition, at a right angle to all others for the peer"}
ROWS = {"*:2x3x4": "the peer's rows run along the last dimension, ours are all that has one first index"}
# Task vectors of zero length.
AWAY = "opposite vectors: the peer is linear where they are exactly so, and rounding decides"
NOTHING = {"none": {}, "given": {"one at base:*": ZERO["first zero:*"], "opposite:*": AWAY}}
# On the line: opposite vectors have no mean direction, and what comes out of rounding is as good as any.
LINE = {"*:scalar": "directions of one entry may be opposite", "*:1": "directions of one entry may be opposite"}
SUM: dict[str, Any] = {"name": "task_arithmetic", "scaling_factor": 1.0}
# The consensus of mergekit's family without normalization, and with it.
SIGNS: dict[str, Any] = {
    "name": "ties_merging", "threshold": 100, "scope": "tensor", "merge_func": "sum", "zero_sum": "positive",
    "scaling_factor": 1.0,
}  # fmt: skip
NORMALIZED: dict[str, Any] = {"name": "ties_merging", "threshold": 100, "compat": "mergekit", "scaling_factor": 1.0}


def more() -> list[Case]:
    """Rows to be compared tensor by tensor."""
    return [*_dare(), *_della(), *_breadcrumbs(), *_elections(), *_spheres(), *_spectra()]


def sampled() -> list[Case]:
    """Rows whose method draws: the peer tells the probability that an entry is kept with."""
    shares = {"density": 0.5, "epsilon": 0.15}
    return [
        Case(
            "della", "mergekit", "della", "probabilities.della",
            lambda n: {**shares, "rescale": False, "inner": SUM}, lambda n: {**shares, "weight": 1.0},
            counts=(1,), dtypes=("float64",), kinds=("random",), shapes=((7,), (5, 3), (3, 5)),
        ),
        Case(
            "dare", "mergekit", "dare", "probabilities.dare_linear",
            lambda n: {"drop_rate": 0.3, "rescale": False, "inner": SUM}, lambda n: {"density": 0.7, "weight": 1.0},
            counts=(1,), dtypes=("float64",), kinds=("random",), shapes=((), (5, 3)),
        ),
    ]  # fmt: skip


def _dare() -> list[Case]:
    found = []
    for drop, rescale in ((0.5, True), (0.9, True), (0.5, False)):
        for function, inner, normalize in (
            ("dare_linear", SUM, False),
            ("dare_ties", SIGNS, False),
            ("dare_ties", NORMALIZED, True),
        ):
            ours = {
                "drop_rate": drop,
                "rescale": rescale,
                "inner": inner,
                **({"rescale_mode": "l1"} if rescale else {}),
            }
            theirs = {"weight": 1.0, "density": 1 - drop, "rescale": rescale, "normalize": normalize}
            found.append(
                Case(
                    f"{function}-{drop}{'' if rescale else '-plain'}{'-normalized' if normalize else ''}",
                    "mergekit", "dare", function,
                    lambda n, ours=ours: ours, lambda n, theirs=theirs: theirs,
                    tolerance=SINGLE,
                    draws=lambda n, drop=drop: {"drop_rate": drop, "rescale": False, "inner": SUM},
                )
            )  # fmt: skip
    return found


def _della() -> list[Case]:
    found = []
    for density, epsilon in ((0.5, 0.15), (0.3, 0.2)):
        for function, inner in (("della_linear", SUM), ("della", NORMALIZED)):
            shares = {"density": density, "epsilon": epsilon}
            found.append(
                Case(
                    f"{function}-{density}", "mergekit", "della", function,
                    lambda n, shares=shares, inner=inner: {**shares, "rescale_mode": "l1", "inner": inner},
                    lambda n, shares=shares: {**shares, "weight": 1.0},
                    tolerance=SINGLE,
                    draws=lambda n, shares=shares: {**shares, "rescale": False, "inner": SUM},
                )
            )  # fmt: skip
    return found


def _breadcrumbs() -> list[Case]:
    found = []
    for density, gamma in ((0.5, 0.1), (0.5, 0.01), (0.6, 0.3), (0.9, 0.2), (1.0, 0.1)):
        for function, inner, normalize in (
            ("breadcrumbs", SUM, False),
            ("breadcrumbs_ties", SIGNS, False),
            ("breadcrumbs_ties", NORMALIZED, True),
        ):
            shares = {"density": density, "gamma": gamma}
            found.append(
                Case(
                    f"{function}-{density}-{gamma}{'-normalized' if normalize else ''}",
                    "mergekit", "breadcrumbs", function,
                    lambda n, shares=shares, inner=inner: {**shares, "inner": inner},
                    lambda n, shares=shares, normalize=normalize: {**shares, "weight": 1.0, "normalize": normalize},
                    excuses=ORDER,
                )
            )  # fmt: skip
    return found


def _elections() -> list[Case]:
    found = []
    for share in DENSITIES:
        found.append(
            Case(
                f"sce-{share}", "mergekit", "sce", "sce",
                lambda n, share=share: {"select_topk": share, "scaling_factor": 1.0},
                lambda n, share=share: {"select_topk": share},
                excuses={} if share == 1.0 else ORDER,
            )
        )  # fmt: skip
    # Float32 alone is wider: t has a denominator that comes near 0 for task vectors that point apart.
    for rows_apart in (False, True):
        found.append(
            Case(
                f"model_stock{'-rows' if rows_apart else ''}", "mergekit", "model_stock", "model_stock",
                lambda n, apart=rows_apart: {"filter_wise": apart}, lambda n, apart=rows_apart: {"filter_wise": apart},
                counts=(2, 3, 4, 5), excuses=ROWS if rows_apart else {}, tolerance={"float64": 1e-12, "float32": 1e-5},
            )
        )  # fmt: skip
    for t in (0.05, 0.5, 3.0):
        found.append(
            Case(
                f"nearswap-{t}", "mergekit", "nearswap", "nearswap",
                lambda n, t=t: {"t": t}, lambda n, t=t: {"t": t}, counts=(1,),
            )
        )  # fmt: skip
    found.append(Case("ram", "mergekit", "ram", "ram", lambda n: {"threshold": 1e-3}, lambda n: {"epsilon": 1e-3}))
    for scale in (1.0, -2.5):
        found.append(
            Case(
                f"passthrough-{scale}", "mergekit", "passthrough", "passthrough",
                lambda n, s=scale: {"scale": s}, lambda n, s=scale: {"scale": s}, "none", counts=(1,),
            )
        )  # fmt: skip
    return found


def _spheres() -> list[Case]:
    found = []
    for t in (0.0, 0.3, 0.5, 1.0):
        found.append(
            Case(
                f"slerp-{t}", "mergekit", "slerp", "slerp",
                lambda n, t=t: {"t": t}, lambda n, t=t: {"t": t}, "first", counts=(2,), excuses=ZERO,
            )
        )  # fmt: skip
        found.append(
            Case(
                f"slerp-original-{t}", "fusion_bench", "slerp", "slerp",
                lambda n, t=t: {"t": t}, lambda n, t=t: {"t": t}, "none", counts=(2,), excuses=ZERO,
            )
        )  # fmt: skip
    for base in ("none", "given"):
        for label, of in WEIGHTS.items():
            if label == "signed":
                continue
            found.append(
                Case(
                    f"nuslerp-{base}-{label}", "mergekit", "nuslerp", "nuslerp",
                    lambda n, of=of, base=base: {
                        "weights": of(n), "of": "deltas" if base == "given" else "models", "linear_above": 1.0,
                    },
                    lambda n, of=of: {"weight": of(n)}, base, counts=(2,),
                    excuses={**ZERO, **LINE, **NOTHING[base]},
                )
            )  # fmt: skip
            found.append(
                Case(
                    f"multislerp-{base}-{label}", "mergekit", "multislerp", "multislerp",
                    lambda n, of=of, base=base: {"weights": of(n), "of": "deltas" if base == "given" else "models"},
                    lambda n, of=of: {"weight": of(n), "eps": 0.0}, base, excuses=LINE,
                )
            )  # fmt: skip
        found.append(
            Case(
                f"multislerp-{base}-eps", "mergekit", "multislerp", "multislerp",
                lambda n, base=base: {"of": "deltas" if base == "given" else "models"},
                lambda n: {"weight": 1.0}, base, excuses={**LINE, **NOTHING[base]}, tolerance=SINGLE,
            )
        )  # fmt: skip
        for by, whole, rows_apart in (("row", False, False), ("column", False, True)):
            found.append(
                Case(
                    f"nuslerp-{base}-{by}", "mergekit", "nuslerp", "nuslerp",
                    lambda n, by=by, base=base: {
                        "by": by, "of": "deltas" if base == "given" else "models", "linear_above": 1.0,
                    },
                    lambda n, whole=whole, apart=rows_apart: {
                        "weight": 1.0, "nuslerp_flatten": whole, "nuslerp_row_wise": apart,
                    },
                    base, counts=(2,), excuses={**ZERO, **ROWS, **LINE, **NOTHING[base], "*:6x1": LINE["*:1"]},
                )
            )  # fmt: skip
    found.append(Case("karcher", "mergekit", "karcher", "karcher", lambda n: {}, lambda n: {}, "none", excuses=LINE))
    return found


def _spectra() -> list[Case]:
    common: dict[str, Any] = {"kinds": FULL_RANK, "shapes": MATRICES, "counts": (1, 2, 3), "tolerance": SPECTRAL}
    found = [
        Case(
            "tsv_merging", "fusion_bench", "tsv_merging", "tsv_merging",
            lambda n: {"matrix_keys": "all_2d", "scaling_factor": 1.0}, lambda n: {}, **common,
        ),
        Case(
            "iso_c", "fusion_bench", "iso_c", "iso_c",
            lambda n: {"matrix_keys": "all_2d", "scaling_factor": 1.0}, lambda n: {}, **common,
        ),
        Case(
            "iso_c-full", "fusion_bench", "iso_c", "iso_c",
            lambda n: {"matrix_keys": "all_2d", "scaling_factor": 1.0, "rank": "full"}, lambda n: {}, **common,
        ),
        Case(
            "means-of-the-rest", "fusion_bench", "tsv_merging", "tsv_merging",
            lambda n: {"matrix_keys": "all_2d", "scaling_factor": 1.0}, lambda n: {},
            shapes=((), (1,), (7,), (2, 3, 4)),
        ),
    ]  # fmt: skip
    for share in (0.5, 0.8):
        found.append(
            Case(
                f"iso_cts-{share}", "fusion_bench", "iso_cts", "iso_cts",
                lambda n, f=share: {"matrix_keys": "all_2d", "scaling_factor": 1.0, "common_space_fraction": f},
                lambda n, f=share: {"common_space_fraction": f}, **common,
            )
        )  # fmt: skip
    for alpha in (0.1, 1.0):
        found.append(
            Case(
                f"svc-{alpha}", "fusion_bench", "svc", "svc",
                lambda n, a=alpha: {"matrix_keys": "all_2d", "alpha": a, "inner": SUM},
                lambda n, a=alpha: {"alpha": a}, **common,
            )
        )  # fmt: skip
    for steps in (20, 300):
        found.append(
            Case(
                f"wudi-{steps}", "fusion_bench", "wudi", "wudi",
                lambda n, steps=steps: {"matrix_keys": "all_2d", "iterations": steps, "solver": "adam"},
                lambda n, steps=steps: {"iter_num": steps}, **common,
            )
        )  # fmt: skip
    return found
