"""Golden vectors of the methods on singular vectors, worked from the definitions (G19, G23)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion_bench import Aswudi, Cart, IsoC, IsoCts, Lines, Svc, Swudi, TsvMerging, Wudi, fuse

T1 = [[2, 0, 1, 0], [0, 1, 0, 1], [1, 0, 3, 0], [0, 2, 0, -1]]
T2 = [[1, 1, 0, 0], [-1, 2, 0, 1], [0, 0, 1, 2], [1, 0, 0, 1]]
T3 = [[0, 1, 0, 2], [1, 0, 0, 0], [0, 3, 1, 0], [1, 1, 0, 1]]

TSVM = """.628345,.423025,2.753879,-1.695139 -1.455049,1.766456,.198302,1.082961
.770468,-.031163,2.065852,1.785023 1.530901,1.548246,-.682232,-.016799"""
ISO_C = """3.037632,.343821,-.296461,.605868 -.727638,1.991078,-.602600,2.223378
.107703,-.209230,2.949646,1.022056 .179225,2.382016,.805581,-1.856152"""
ISO_CTS = """3.129010,.280744,.105195,.165480 -.253273,1.524746,-.704411,2.650053
-.149085,.073496,3.051392,.754555 -.175765,2.738413,.299535,-1.512764"""
WUDI = """1.381349,.666535,1.185248,-.169632 -.671182,1.620031,.270365,1.087179
.459281,.381263,3.248389,.950705 .696584,1.048193,-.122107,.289970"""
SWUDI = """2.597278,1.086818,.468177,-.223633 -.559689,1.816006,.065156,1.328304
.400706,.004488,3.149470,1.562299 1.075518,1.610090,-.077403,-.272388"""
SVC = """1.732173,.609863,.747219,.237748 -.395309,1.615374,.143463,1.188633
.789206,.245750,2.583177,1.303883 .531598,1.149478,.207627,-.040699"""
CART = """.772108,.707820,1.235036,.950118 -.106916,.958595,.078986,.505852
.481650,1.056914,1.837720,.621571 .188861,.785855,-.132538,-.017449"""

TOTAL = {"name": "task_arithmetic", "scaling_factor": 1.0}
CASES: list[tuple[Any, int, str]] = [
    (TsvMerging(), 2, TSVM),
    (IsoC(), 2, ISO_C),
    (IsoC(rank="full"), 2, ISO_C),
    (IsoCts(common_space_fraction=0.8), 2, ISO_C),
    (IsoCts(common_space_fraction=0.5), 2, ISO_CTS),
    (IsoCts(common_space_fraction=0.5, rank="full"), 2, ISO_CTS),
    (Wudi(), 2, WUDI),
    (Aswudi(), 2, WUDI),
    (Swudi(time=3.0, fraction=0.5), 2, SWUDI),
    (Svc(inner=TOTAL, alpha=1.0), 2, SVC),  # type: ignore[arg-type]
    (Cart(rank_ratio=0.5), 3, CART),
]


def stored(entries: Any, dtype: torch.dtype, turned: bool = False) -> dict[str, torch.Tensor]:
    matrix = torch.tensor(entries, dtype=dtype)
    return {"h.0.mlp.c_fc.weight": (matrix.T if turned else matrix).contiguous()}


def merged(method: Any, count: int, dtype: torch.dtype, shift: float = 0.0) -> torch.Tensor:
    """The merged delta; `shift` is the base."""
    base = {name: torch.full_like(zero, shift) for name, zero in stored(T1, dtype).items()}
    models = [{name: task + base[name] for name, task in stored(each, dtype).items()} for each in (T1, T2, T3)[:count]]
    ((name, out),) = fuse(method, models, base).items()
    return out - base[name]


@pytest.mark.parametrize(("method", "count", "expected"), CASES, ids=lambda value: getattr(value, "key", str)())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 5e-6)])
def test_golden(method: Any, count: int, expected: str, dtype: torch.dtype, tolerance: float) -> None:
    table = torch.tensor([[float(entry) for entry in row.split(",")] for row in expected.split()], dtype=dtype)
    torch.testing.assert_close(merged(method, count, dtype), table, rtol=0, atol=tolerance)
    torch.testing.assert_close(merged(method, count, dtype, shift=0.5), table, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", [case[0] for case in CASES], ids=lambda value: value.key())
def test_matrices_stored_in_by_out(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored transposed, as by GPT-2, is merged as the layer it is."""
    from fusion_bench.api import fuse_pool
    from fusion_bench.checkpoint.memory import MemoryCheckpoint
    from fusion_bench.modelpool.base import ModelPool

    outs = {}
    for turned in (False, True):
        config = {"model_type": "gpt2"} if turned else {}
        base = MemoryCheckpoint(stored([[0] * 4] * 4, torch.float64), config)
        models = {
            n: MemoryCheckpoint(stored(t, torch.float64, turned), config) for n, t in zip("ab", (T1, T2), strict=True)
        }
        made: Any = fuse_pool(method, ModelPool(models, base))
        ((_, outs[turned]),) = made.checkpoint.items()
    torch.testing.assert_close(outs[True].T, outs[False], rtol=1e-12, atol=1e-12)


def test_factors_of_calibration() -> None:
    """G19: the factors for α = 0.1 on the singular values of T1 + T2."""
    before = torch.linalg.svdvals(torch.tensor(T1, dtype=torch.float64) + torch.tensor(T2))
    after = torch.linalg.svdvals(merged(Svc(inner=TOTAL, alpha=0.1), 2, torch.float64))  # type: ignore[arg-type]
    factors = torch.tensor([0.681060, 0.518154, 0.514109, 7.008429], dtype=torch.float64)
    torch.testing.assert_close(after, (before * factors).sort(descending=True).values, rtol=0, atol=1e-5)


def test_factors_by_depth() -> None:
    """G23, with one tensor outside of the blocks."""
    names = ["embed.weight", *(f"encoder.block.{block}.w" for block in range(4))]
    base = {name: torch.zeros(3) for name in names}
    model = {name: torch.ones(3) for name in names}
    method = Lines(inner=TOTAL, alpha=0.125, beta=0.5)  # type: ignore[arg-type]
    out = fuse(method, [model], base)
    factors = [0.125, 0.125, 0.291667, 0.458333, 0.625]
    assert [float(out[name][0]) for name in names] == pytest.approx(factors, abs=1e-6)
