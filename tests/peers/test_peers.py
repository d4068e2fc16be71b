"""Every row of the table, on odd shapes, zeros, equal and opposite tensors: ours beside the peer's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peer_cases import CASES, SAMPLED, Case, Run
from peer_exchange import Peer
from peer_inputs import State

from fusion_bench.api import fuse
from fusion_bench.build import build
from fusion_bench.method import method_class


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_hyperparameters_exist(case: Case) -> None:
    """A row that no longer fits its method is found where there are no peers too."""
    for count in case.counts:
        build(method_class(case.key), case.ours(count), "method")


@pytest.mark.peers
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_agreement(case: Case, peer: Callable[[str], Peer]) -> None:
    peer_answers = peer(case.peer)
    faults: list[str] = []
    compared = 0
    for run in case.runs:
        ours, refused = case.fused(run)
        theirs, their_refusals = peer_answers.answer(case, run.id)
        scales = _scales(case, run, theirs)
        for name in scales:
            if case.excused(name):
                continue
            where = f"{name}, {run.count} models, {run.dtype}"
            if name in their_refusals:
                # What a peer cannot do it cannot check: ours may answer or refuse, never with NaN.
                if name in ours and not torch.isfinite(ours[name]).all():
                    faults.append(f"{where}: not finite (the peer: {their_refusals[name]})")
                continue
            if name in refused and not torch.isfinite(theirs[name]).all():
                continue
            if name in refused:
                faults.append(f"{where}: refused by ours alone: {refused[name]}")
                continue
            got, wanted = ours[name], theirs[name]
            if got.shape != wanted.shape or got.dtype != wanted.dtype:
                faults.append(f"{where}: {got.dtype} {tuple(got.shape)}, expected {wanted.dtype} {tuple(wanted.shape)}")
            elif not torch.isfinite(got).all():
                faults.append(f"{where}: not finite")
            elif torch.isfinite(wanted).all():
                compared += 1
                worst = float((got.double() - wanted.double()).abs().max()) / scales[name]
                if worst > case.tolerance[run.dtype]:
                    faults.append(f"{where}: {worst:.2e} apart: {_shown(got)} and the peer's {_shown(wanted)}")
    assert not faults, f"{len(faults)} of {len(faults) + compared} disagree:\n" + "\n".join(faults[:6])
    assert compared, "nothing was compared"


@pytest.mark.peers
@pytest.mark.parametrize("case", SAMPLED.values(), ids=list(SAMPLED))
def test_probabilities(case: Case, peer: Callable[[str], Peer]) -> None:
    """How often an entry is kept over many seeds, against the probability that the peer draws with."""
    (run,) = case.runs
    probabilities, refused = peer(case.peer).answer(case, run.id)
    assert not refused
    base, models = case.inputs(run)
    method, draws = build(method_class(case.key), case.ours(run.count), "method"), 2000
    kept = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    for seed in range(draws):
        for name, tensor in fuse(method, models, base, seed=seed).items():
            kept[name] += tensor != base[name]
    for name, probability in probabilities.items():
        error = (probability * (1 - probability) / draws).sqrt()
        assert ((kept[name] / draws - probability).abs() <= 4.5 * error).all(), name


def _scales(case: Case, run: Run, theirs: State) -> dict[str, float]:
    """Tensor name -> the largest magnitude that goes in or should come out, which rounding errors are relative to."""
    base, models = case.inputs(run)
    finite = {name: tensor for name, tensor in theirs.items() if torch.isfinite(tensor).all()}
    involved = (base, *models.values(), finite)
    return {name: max(float(s[name].abs().max()) for s in involved if name in s) or 1.0 for name in base}


def _shown(tensor: torch.Tensor) -> str:
    return "[" + ", ".join(f"{x:.6g}" for x in tensor.reshape(-1)[:6].tolist()) + "]"
