"""Whole CLIP pools fused by the original fusion-bench, with its own classes, beside ours: the same tensors.

RegMean in float32 is held against the peer's own result in float64, since the peer inverts in float32 and loses more by
that than ours may; the two float32 results may lie twice as far apart.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_clip_pool import IMAGES, SIZES, Pixels, make
from peer_exchange import HERE, UnavailableError, interpreter
from safetensors.torch import load_file

from fusion_bench.api import fuse
from fusion_bench.build import build
from fusion_bench.method import method_class
from fusion_bench.modelpool import open_modelpool

DTYPES = ("float32", "float64")
SIZE = SIZES["tiny"]
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A method with the peer's parameters, with ours, and how far the results may lie apart (of a tensor's largest)."""

    id: str
    method: str
    theirs: Mapping[str, Any]
    ours: Mapping[str, Any]
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"float32": 1e-6, "float64": 1e-12})


def regmean(ratio: float, exact: float, rounded: float = 1e-5, examples: int = SIZE.images, rows: int = 8) -> Case:
    """`exact`, `rounded`: tolerance in float64 and in float32; `rows`: examples a batch."""
    # A batch that is begun counts in full.
    used = min(SIZE.images, -(-examples // rows) * rows)
    return Case(
        f"regmean-{ratio}-{used}-by-{rows}", "regmean",
        {
            "num_regmean_examples": examples, "reduce_non_diagonal_ratio": ratio, "weight_transpose": True,
            "exclude_param_names_regex": [], "dataloader_kwargs": {"batch_size": rows, "num_workers": 0},
        },
        {"reduce_non_diagonal_ratio": ratio, "examples": used, "batch_size": rows},
        {"float32": rounded, "float64": exact},
    )  # fmt: skip


def _cases() -> list[Case]:
    rows = [Case("average", "simple_average", {}, {})]
    for factor in (0.3, 1.0, -0.5):
        rows.append(Case(f"sum-{factor}", "task_arithmetic", {"scaling_factor": factor}, {"scaling_factor": factor}))
    for kept, function, factor in ((20, "sum", 0.3), (20, "mean", 1.0), (50, "max", 0.7), (90, "sum", 0.3)):
        words = {"threshold": kept, "merge_func": function, "scaling_factor": factor}
        rows.append(
            Case(
                f"ties-{kept}-{function}", "ties_merging", {**words, "remove_keys": []}, {**words, "compat": "authors"}
            )
        )
    # The peer's ratio is of float32: 0.95 and 0.6 are rounded, the others are not.
    rows += [regmean(0.95, 1e-7), regmean(0.6, 1e-7), regmean(0.5, 1e-11), regmean(0.0, 1e-11)]
    rows += [regmean(0.5, 1e-11, rows=16), regmean(0.5, 1e-11, examples=20, rows=16)]
    # Unreduced Grams are nearly singular, and our ridge is there for float32 ones: it moves the result by this much.
    rows.append(regmean(1.0, 1e-8, rounded=2e-4))
    return rows


CASES = {case.id: case for case in _cases()}


class Answers:
    """What the peer made of every case on the pools of both dtypes, in one process."""

    def __init__(self, root: Path) -> None:
        python = interpreter("fusion_bench")
        self.root = root
        for dtype in DTYPES:
            make(root / dtype, SIZE, dtype)
        asked = [
            {"id": f"{case.id}-{dtype}", "pool": str(root / dtype), "method": case.method, "parameters": case.theirs}
            for case in CASES.values()
            for dtype in DTYPES
        ]
        (root / "cases.json").write_text(json.dumps(asked), encoding="utf-8")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [python, "-I", str(HERE / "run_fusion_bench_clip.py"), str(root)],
            env=environment, capture_output=True, text=True, cwd=root,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        self.notes = json.loads((root / "notes.json").read_text(encoding="utf-8"))["cases"]

    def theirs(self, case: Case, dtype: str) -> State:
        note = self.notes[f"{case.id}-{dtype}"]
        assert "error" not in note, note["error"]
        stored = load_file(self.root / f"{case.id}-{dtype}" / "model.safetensors")
        # The base's class saves a tower that came out of a whole CLIP with a prefix.
        return {name.removeprefix("vision_model."): tensor for name, tensor in stored.items()}

    def ours(self, case: Case, dtype: str) -> State:
        pool = open_modelpool({"type": "folder", "path": str(self.root / dtype), "part": "vision"})
        method = build(method_class(case.method), case.ours, "method")
        return dict(fuse(method, pool, **(self._fitting(case, dtype) if case.method == "regmean" else {})))

    def _fitting(self, case: Case, dtype: str) -> dict[str, Any]:
        """The images in the order in which the peer took them, and a module of the dtype."""
        from transformers import CLIPVisionModel

        file, orders = self.root / dtype / IMAGES, self.notes[f"{case.id}-{dtype}"]["asked"]
        module = CLIPVisionModel.from_pretrained(self.root / dtype / "task0").to(getattr(torch, dtype))
        return {"data": {task: Pixels(file, task, order) for task, order in orders.items()}, "module": module}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    try:
        return Answers(tmp_path_factory.mktemp("clip"))
    except UnavailableError as reason:
        pytest.skip(str(reason))


def apart(one: State, other: State) -> float:
    """The largest difference in any tensor, as a share of the other's largest magnitude in it."""
    assert set(one) == set(other)
    assert all(one[name].shape == other[name].shape for name in other)
    wide = {name: (one[name].double(), other[name].double()) for name in other}
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in wide.values())


@pytest.mark.peers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_same_tensors(case: Case, dtype: str, answers: Answers) -> None:
    ours, theirs = answers.ours(case, dtype), answers.theirs(case, dtype)
    assert {tensor.dtype for tensor in (*ours.values(), *theirs.values())} == {getattr(torch, dtype)}
    if case.method != "regmean":
        assert apart(ours, theirs) <= case.tolerance[dtype]
        return
    exact = answers.theirs(case, "float64")
    assert apart(ours, exact) <= case.tolerance[dtype]
    assert apart(ours, theirs) <= 2 * case.tolerance[dtype]
    # It is far from the mean, so that the agreement says something of the Grams.
    assert apart(ours, answers.theirs(CASES["average"], dtype)) > 0.05


@pytest.mark.peers
def test_number_of_examples_is_rounded_up_to_batches(answers: Answers) -> None:
    """Of 40 images, 20 asked for in batches of 16: 32 are used, whatever else was read ahead; ours says 32."""
    case = CASES["regmean-0.5-32-by-16"]
    orders = answers.notes[f"{case.id}-float32"]["asked"].values()
    assert all(len(set(order)) == len(order) >= 32 for order in orders)
    assert case.ours["examples"] == 32
