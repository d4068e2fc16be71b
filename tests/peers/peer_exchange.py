"""Asks a peer interpreter: cases go as JSON and safetensors, one process answers all of them, tensors come back."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peer_cases import CASES, SAMPLED, Case
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
PEERS = {"mergekit": "FUSION_BENCH_PEER_MERGEKIT", "fusion_bench": "FUSION_BENCH_PEER_FUSION_BENCH"}


class UnavailableError(Exception):
    """There is no interpreter to ask; the message says what to set."""


def interpreter(name: str) -> str:
    """The peer's Python; UnavailableError where none is given."""
    variable = PEERS[name]
    python = os.environ.get(variable, "")
    if not python:
        raise UnavailableError(
            f"{variable} is not set: a Python with tests/peers/{name.replace('_', '-')}.txt installed"
        )
    if not Path(python).exists():
        raise UnavailableError(f"{variable}={python} does not exist")
    return python


class Peer:
    """The answers of one peer."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.versions: dict[str, str] = {}
        self._failure: str = ""
        self._asked = False

    def ask_all(self) -> None:
        """Runs the peer once on every case about it; UnavailableError where it cannot be run."""
        python = interpreter(self.name)
        if self._asked:
            return
        self._asked = True
        cases = [case for case in (*CASES.values(), *SAMPLED.values()) if case.peer == self.name]
        questions, tensors = [], {}
        for case in cases:
            for run in case.runs:
                asked = case.question(run)
                tensors.update({f"{case.id}|{run.id}|{place}": t for place, t in asked.pop("tensors").items()})
                questions.append({"id": f"{case.id}|{run.id}", **asked})
        (self.folder / "cases.json").write_text(json.dumps(questions), encoding="utf-8")
        tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(tensors, self.folder / "in.safetensors")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        # -I: neither this project, which has the name of one of the peers, nor the current folder is importable.
        done = subprocess.run(
            [python, "-I", str(HERE / f"run_{self.name}.py"), str(self.folder)],
            env=environment, capture_output=True, text=True, cwd=self.folder,
        )  # fmt: skip
        if done.returncode:
            self._failure = f"{self.name} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        else:
            self.versions = self._notes["versions"]

    @cached_property
    def _notes(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "notes.json").read_text(encoding="utf-8")))

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(load_file(self.folder / "out.safetensors"))

    def answer(self, case: Case, run_id: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The peer's tensors, and its error messages for the tensors that it refused."""
        assert not self._failure, self._failure
        prefix = f"{case.id}|{run_id}|"
        tensors = {key.removeprefix(prefix): t for key, t in self._tensors.items() if key.startswith(prefix)}
        errors = {key.removeprefix(prefix): e for key, e in self._notes["errors"].items() if key.startswith(prefix)}
        return tensors, errors
