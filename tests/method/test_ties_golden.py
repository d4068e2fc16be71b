"""Golden vectors of TIES-Merging: worked by hand from the definitions of the paper and of three packages."""

from __future__ import annotations

import pytest
import torch

from fusion_bench import TiesMerging, fuse

R = [
    [0.9, -0.1, 0.3, -0.7, 0.05, 0.2, -0.4, 0.6, -0.8, 0.01],
    [-0.2, 0.8, 0.4, -0.6, -0.03, -0.9, 0.1, 0.5, 0.7, -0.02],
    [0.5, -0.3, -0.9, 0.1, 0.04, 0.25, 0.35, -0.65, 0.15, 0.55],
]


def merge(rows: list[list[float]], split: int | None = None, **fields: object) -> list[float]:
    """The merged delta on a zero base, in float64; `split` stores the vector as two tensors."""

    def stored(row: list[float]) -> dict[str, torch.Tensor]:
        whole = torch.tensor(row, dtype=torch.float64)
        return {"w": whole} if split is None else {"a": whole[:split], "b": whole[split:]}

    base = stored([0.0] * len(rows[0]))
    out = fuse(TiesMerging(scaling_factor=1.0, **fields), [stored(row) for row in rows], base)
    return torch.cat([out[name] for name in sorted(out)]).tolist()


AUTHORS_20 = [0.9, 0.8, -0.9, -0.7, 0, -0.9, 0, -0.65, -0.8, 0.55]
CASES = [
    ({"threshold": 20.0, "count": "authors"}, AUTHORS_20),
    ({"threshold": 20.0, "count": "authors", "merge_func": "mean"}, AUTHORS_20),
    ({"threshold": 20.0, "compat": "authors"}, AUTHORS_20),
    ({"threshold": 20.0}, [0.9, 0.8, -0.9, 0, 0, -0.9, 0, -0.65, -0.8, 0]),
    ({"density": 0.2, "merge_func": "mean"}, [0.9, 0.8, -0.9, 0, 0, -0.9, 0, -0.65, -0.8, 0]),
    ({"threshold": 30.0, "count": "authors", "merge_func": "mean"},
     [0.7, 0.8, -0.9, -0.65, 0, -0.9, 0, -0.65, -0.8, 0.55]),
    ({"threshold": 30.0, "count": "authors"}, [1.4, 0.8, -0.9, -1.3, 0, -0.9, 0, -0.65, -0.8, 0.55]),
    ({"threshold": 30.0}, [0.9, 0.8, -0.9, -0.7, 0, -0.9, 0, -0.65, -0.8, 0.55]),
    ({"threshold": 50.0, "merge_func": "mean"}, [0.7, 0.8, -0.9, -0.65, 0, -0.9, -0.4, 0.55, -0.8, 0.55]),
    ({"threshold": 50.0, "merge_func": "mean", "count": "authors"},
     [0.7, 0.8, -0.9, -0.65, 0, -0.9, -0.4, 0.55, -0.8, 0.55]),
    ({"threshold": 50.0}, [1.4, 0.8, -0.9, -1.3, 0, -0.9, -0.4, 1.1, -0.8, 0.55]),
    ({"threshold": 50.0, "merge_func": "max"}, [0.9, 0.8, -0.9, -0.7, 0, -0.9, -0.4, 0.6, -0.8, 0.55]),
    ({"threshold": 100.0, "merge_func": "mean"}, [0.7, 0.8, -0.9, -0.65, 0.045, -0.9, 0.225, 0.55, 0.425, 0.28]),
    ({"threshold": 1.0, "merge_func": "mean"}, [0.7, 0.8, -0.9, -0.65, 0.045, -0.9, 0.225, 0.55, 0.425, 0.28]),
    ({"threshold": 100.0}, [1.4, 0.8, -0.9, -1.3, 0.09, -0.9, 0.45, 1.1, 0.85, 0.56]),
]  # fmt: skip


@pytest.mark.parametrize("split", [None, 4])
@pytest.mark.parametrize(("fields", "expected"), CASES)
def test_published_settings(fields: dict[str, object], expected: list[float], split: int | None) -> None:
    assert merge(R, split, **fields) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("rule", "expected"), [("none", [0, 0]), ("positive", [1, 1]), ("majority", [-1, -1])])
def test_zero_totals(rule: str, expected: list[float]) -> None:
    assert merge([[1, -1], [-1, 1]], threshold=100.0, zero_sum=rule) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"compat": "mergekit"}, [0.633333, 0.8, -0.9, -0.666667, 0, -0.9, 0.35, -0.65, -0.8, 0.55]),
        ({"compat": "peft"}, [0.95, 0.4, -1.8, -0.5, 0, -0.45, -0.4, 0.425, -0.8, 1.1]),
        ({"merge_func": "mean"}, [0.633333, 0.8, -0.9, -0.666667, 0, -0.9, -0.4, 0.566667, -0.8, 0.55]),
    ],
)
def test_weights_in_three_packages(fields: dict[str, object], expected: list[float]) -> None:
    assert merge(R, density=0.5, weights=(1.0, 0.5, 2.0), **fields) == pytest.approx(expected, abs=1e-6)
