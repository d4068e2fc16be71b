"""Golden vectors and laws of interpolation on spheres, Model Stock, nearswap, RAM and ExPO through the library."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_bench import (
    ByName,
    Dare,
    Expo,
    Karcher,
    Mlerp,
    ModelStock,
    Multislerp,
    Nearswap,
    Nuslerp,
    Ram,
    SimpleAverage,
    Slerp,
    WeightedAverage,
    fuse,
)
from fusion_bench.errors import ConfigError, NonFiniteError

A = [1.0, 0.0, 2.0, -1.0]
B = [0.0, 1.0, 1.0, 3.0]
C = [2.0, 1.0, 0.0, 1.0]
HALF = [0.755106, 0.755106, 2.265318, 1.510212]
THIRD = [0.933955, 0.490387, 2.358297, 0.537207]
UNEVEN = [1.065348, 0.337205, 2.467901, -0.053733]
EVEN = [0.888762, 0.656394, 2.433918, 1.080421]
STOCK_3 = [0.394860, 0.263240, 0.394860, 0.394860]
STOCK_2 = [-0.140370, -0.140370, -0.421109, -0.280740]

State = dict[str, torch.Tensor]


def merge(method: Any, rows: list[list[float]], base: list[float] | None = None) -> list[float]:
    def stored(row: list[float]) -> State:
        return {"w": torch.tensor(row, dtype=torch.float64)}

    return fuse(method, [stored(row) for row in rows], None if base is None else stored(base))["w"].tolist()


ZERO = [0.0] * 4
CASES = [
    (Slerp(t=0.5), [A, B], None, HALF),
    (Slerp(t=0.3), [A, B], None, THIRD),
    (Slerp(t=0.3), [B], A, THIRD),
    (Nuslerp(weights=(0.7, 0.3)), [A, B], None, THIRD),
    (Nuslerp(weights=(7.0, 3.0), by="row"), [A, B], None, THIRD),
    (Nuslerp(weights=(7.0, 3.0), by="column"), [A, B], None, THIRD),
    (Nuslerp(weights=(0.7, 0.3), of="deltas"), [[a + 1 for a in A], [b + 1 for b in B]], [1.0] * 4,
     [each + 1 for each in THIRD]),
    (Mlerp(), [A, B], None, [0.856349, 0.856349, 2.569047, 1.712698]),
    (Mlerp(scope="tensor"), [A, B], None, [0.856349, 0.856349, 2.569047, 1.712698]),
    (Mlerp(norm="mean"), [A, B], None, [0.744402, 0.744402, 2.233207, 1.488804]),
    (Multislerp(weights=(0.7, 0.3)), [A, B], None, UNEVEN),
    (Multislerp(), [A, B], None, EVEN),
    (Multislerp(of="deltas"), [A, B], ZERO, EVEN),
    (Karcher(), [A, B], None, EVEN),
    (Mlerp(), [[1.0, 2, 2], [2.0, -1, 2]], None, [1.765045, 0.588348, 2.353394]),
    (Slerp(), [[1.0, 2, 2], [2.0, -1, 2]], None, [1.765045, 0.588348, 2.353394]),
    (ModelStock(), [A, B, C], ZERO, STOCK_3),
    (ModelStock(filter_wise=True), [A, B, C], ZERO, STOCK_3),
    (ModelStock(), [A, B], ZERO, STOCK_2),
    (Nearswap(t=0.5), [B], A, [0.5, 0.5, 1.5, -0.5]),
    (Ram(), [A, B, C], ZERO, [1.5, 1, 1.5, 1]),
    (Expo(beta=0.5), [A], ZERO, [1.5, 0, 3, -1.5]),
    (Expo(beta=0.5), [A], [1.0, 1.0, 1.0, 1.0], [1, -0.5, 2.5, -2]),
]  # fmt: skip


@pytest.mark.parametrize(("method", "rows", "base", "expected"), CASES, ids=lambda each: type(each).__name__)
def test_worked_numbers(method: Any, rows: list[list[float]], base: Any, expected: list[float]) -> None:
    """G4, G13."""
    assert merge(method, rows, base) == pytest.approx(expected, abs=1e-6)


def test_rows_and_columns_are_vectors_of_their_own() -> None:
    """Model Stock filter by filter, NuSLERP by row and column, in a table and in a convolution."""
    stacked = [{"w": torch.tensor([A, C], dtype=torch.float64)}, {"w": torch.tensor([B, C]).double()}]
    zeros = {"w": torch.zeros(2, 4, dtype=torch.float64)}
    by_row = fuse(ModelStock(filter_wise=True), stacked, zeros)["w"].tolist()
    assert by_row[0] == pytest.approx(STOCK_2, abs=1e-6)
    assert by_row[1] == pytest.approx(C, abs=1e-12)
    for turn, by in ((False, "row"), (True, "column")):
        for shape in ((2, 4), (2, 2, 2)):
            if turn and len(shape) == 2:
                states = [{"w": state["w"].T.contiguous()} for state in stacked]
            else:
                states = [{"w": state["w"].reshape(shape)} for state in stacked]
            merged = fuse(Nuslerp(weights=(0.7, 0.3), by=by), states)["w"]  # type: ignore[arg-type]
            if turn and len(shape) == 3:
                # A column holds what two filters have at one place.
                first = merge(Nuslerp(weights=(0.7, 0.3)), [[A[0], C[0]], [B[0], C[0]]])
                assert merged[:, 0, 0].tolist() == pytest.approx(first, abs=1e-12)
                continue
            found = (merged.T if turn else merged.reshape(2, 4))[0].tolist()
            assert found == pytest.approx(THIRD, abs=1e-6)


def test_ends_symmetry_and_rotation() -> None:
    """SLERP: (a, b, t) is (b, a, 1 - t); rotating both rotates the result."""
    assert merge(Slerp(t=0.3), [A, B]) == pytest.approx(merge(Slerp(t=0.7), [B, A]), abs=1e-12)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    rotated = [(turn @ torch.tensor(each, dtype=torch.float64)).tolist() for each in (A, B)]
    for method in (Slerp(t=0.3), Karcher(weights=(3.0, 1.0)), Mlerp(), Multislerp(weights=(3.0, 1.0))):
        expected = (turn @ torch.tensor(merge(method, [A, B]), dtype=torch.float64)).tolist()
        assert merge(method, rotated) == pytest.approx(expected, abs=1e-12)


def test_where_spheres_have_no_answer() -> None:
    """Zero and opposite vectors, directions that cancel: linear for two, an error by name for more."""
    assert merge(Slerp(t=0.25), [[1.0, 2.0], [-2.0, -4.0]]) == pytest.approx([0.25, 0.5])
    assert merge(Slerp(t=0.25), [[0.0, 0.0], [2.0, 4.0]]) == pytest.approx([0.5, 1.0])
    for method in (Multislerp(), Karcher()):
        assert merge(method, [[1.0, 0.0], [-3.0, 0.0]]) == pytest.approx([-1.0, 0.0])
        with pytest.raises(ConfigError, match=r"'w'.* cancel"):
            merge(method, [[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0]])
        assert merge(method, [[0.0, 0.0]] * 3) == [0.0, 0.0]
    assert merge(Karcher(), [[1.0], [1.0], [-1.0]]) == pytest.approx([1.0])
    assert merge(Mlerp(), [[1.0, 2.0], [-1.0, -2.0]]) == [0.0, 0.0]
    assert merge(ModelStock(), [[1.0, 0.0], [-1.0, 0.0]], [0.0, 0.0]) == pytest.approx([0.0, 0.0])
    assert merge(ModelStock(), [[2.0, 3.0]] * 2, [2.0, 3.0]) == [2.0, 3.0]
    assert merge(ModelStock(floor=0.0), [[2.0, 3.0], [2.0, 3.0]], [2.0, 3.0]) == [2.0, 3.0]


def test_floor_of_model_stock() -> None:
    """Small task vectors: cosines shrink under the floor, and are exact without it."""
    small = [[each * 1e-6 for each in row] for row in (A, C)]
    plain = merge(ModelStock(floor=0.0), small, ZERO)
    assert plain == pytest.approx([each * 1e-6 for each in merge(ModelStock(), [A, C], ZERO)], rel=1e-9)
    assert max(map(abs, merge(ModelStock(), small, ZERO))) < 0.01 * max(map(abs, plain))


def test_relations() -> None:
    """L27; linear interpolation; near models make every mean the plain one."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, generator=generator, dtype=torch.float64)
    near = [(base + 1e-3 * torch.randn(300, generator=generator, dtype=torch.float64)).tolist() for _ in range(3)]
    plain = merge(SimpleAverage(), near)
    for method in (Multislerp(), Karcher(), Mlerp(norm="mean"), Mlerp(scope="tensor", norm="mean")):
        assert merge(method, near) == pytest.approx(plain, abs=1e-2 * 1e-3)
    far = [A, B, C]
    assert merge(Karcher(), far) != pytest.approx(merge(Multislerp(), far), abs=1e-3)
    assert merge(Slerp(t=0.3), near[:2]) == pytest.approx(merge(WeightedAverage(weights=(0.7, 0.3)), near[:2]))
    stopped = merge(Karcher(iterations=0), far)
    assert stopped == pytest.approx(merge(Multislerp(), far), abs=1e-12)


def test_karcher_mean_is_where_the_logarithms_cancel() -> None:
    rows = torch.tensor([A, B, C], dtype=torch.float64)
    units = rows / rows.norm(dim=1, keepdim=True)
    mean = torch.tensor(merge(Karcher(iterations=100, tolerance=1e-12), [A, B, C]), dtype=torch.float64)
    assert float(mean.norm()) == pytest.approx(float(rows.norm(dim=1).mean()), abs=1e-12)
    point = mean / mean.norm()
    cosines = units @ point
    across = units - cosines[:, None] * point
    logs = torch.acos(cosines)[:, None] * across / across.norm(dim=1, keepdim=True)
    assert float(logs.mean(0).norm()) < 1e-7


def test_scopes_of_mlerp() -> None:
    """One factor for the model keeps the proportions between tensors."""
    generator = torch.Generator().manual_seed(2)
    shapes = {"a": (5, 3), "b": (7,), "s": ()}
    group = [{n: torch.randn(s, generator=generator).double() for n, s in shapes.items()} for _ in range(3)]
    mean, whole = fuse(SimpleAverage(), group), fuse(Mlerp(), group)
    ratios = {round(float((whole[name] / mean[name]).mean()), 9) for name in shapes}
    assert len(ratios) == 1
    norms = [float(model["a"].norm()) for model in group]
    assert float(fuse(Mlerp(scope="tensor"), group)["a"].norm()) == pytest.approx(max(norms))
    everything = [torch.cat([tensor.reshape(-1) for tensor in model.values()]).norm() for model in [whole, *group]]
    assert float(everything[0]) == pytest.approx(float(max(everything[1:])))


def test_number_of_models() -> None:
    for method, rows, base, match in [
        (Slerp(), [A, B, C], None, "1 to 2"),
        (Slerp(), [A], None, "no base"),
        (Nuslerp(), [A], ZERO, "takes 2 models"),
        (Nuslerp(of="deltas"), [A, B], None, "base"),
        (Multislerp(of="deltas"), [A, B], None, "base"),
        (Nearswap(), [A, B], ZERO, "takes 1 model"),
        (ModelStock(), [A], ZERO, "2 or more"),
        (Nuslerp(weights=(1.0, -1.0)), [A, B], None, "sum to 0"),
        (Karcher(weights=(1.0, -1.0)), [A, B], None, "sum to 0"),
    ]:
        with pytest.raises(ConfigError, match=match):
            merge(method, rows, base)


@pytest.mark.parametrize(
    "method",
    [
        Slerp(), Nuslerp(by="row"), Nuslerp(by="column"), Nuslerp(of="deltas"), Multislerp(), Karcher(), Mlerp(),
        Mlerp(scope="tensor"), ModelStock(), ModelStock(filter_wise=True), Ram(), Expo(), Nearswap(),
    ],
    ids=lambda method: str(method.plain()),
)  # fmt: skip
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(method: Any, bad: float) -> None:
    count = 1 if isinstance(method, Nearswap) else 2
    for shape in ((3, 2), (2, 3, 2), ()):
        models = [{"a": torch.ones(3, 2), "w": torch.ones(shape)} for _ in range(count)]
        models[-1]["w"].view(-1)[-1] = bad
        with pytest.raises(NonFiniteError, match=r"'w'.* NaN or infinite"):
            fuse(method, models, {"a": torch.ones(3, 2), "w": torch.zeros(shape)})


@pytest.mark.parametrize("method", [Nuslerp(by="row"), Nuslerp(by="column"), ModelStock(filter_wise=True), Slerp()])
def test_empty_tensors(method: Any) -> None:
    shapes = {"a": (0, 4), "b": (4, 0), "c": (0, 3, 4), "d": (3, 0, 4), "e": (0,), "f": ()}
    states = [{name: torch.ones(shape) * (i + 1) for name, shape in shapes.items()} for i in range(3)]
    merged = fuse(method, states[1:], states[0])
    assert {name: tuple(tensor.shape) for name, tensor in merged.items()} == shapes
    assert torch.isfinite(merged["f"])


def test_inside_other_methods() -> None:
    """As the inner method of a wrapper, and for some tensors alone."""
    states = [{"w": torch.tensor(row, dtype=torch.float64), "v": torch.tensor(row[:2]).double()} for row in (A, B, C)]
    base = {"w": torch.zeros(4).double(), "v": torch.zeros(2).double()}
    dropped = fuse(Dare(drop_rate=0.0, inner="model_stock"), states, base)
    assert dropped["w"].tolist() == pytest.approx(STOCK_3, abs=1e-6)
    chosen = fuse(ByName(inner="model_stock", rules=[{"filter": "v", "floor": 0.5}]), states, base)
    assert chosen["w"].tolist() == pytest.approx(STOCK_3, abs=1e-6)


def test_remark_of_model_stock() -> None:
    from fusion_bench.checkpoint.memory import MemoryCheckpoint

    merged = fuse(
        ModelStock(),
        {name: MemoryCheckpoint({"w": torch.tensor(row)}) for name, row in {"a": A, "b": B}.items()},
        MemoryCheckpoint({"w": torch.zeros(4)}),
    )
    assert any("w (-0.281)" in remark for remark in merged.remarks())
