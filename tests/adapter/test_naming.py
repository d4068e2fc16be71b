"""The names under which PEFT finds the parts of an adapter again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.ia3.model import IA3Model
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from fusion_bench import SimpleAverage
from fusion_bench.adapter import extract_adapter, fuse_adapters, save_adapter
from fusion_bench.adapter.naming import _gated, _named
from fusion_bench.checkpoint.adapter import AdapterCheckpoint
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import ConfigError
from fusion_bench.modelpool.base import ModelPool

KNOWN = {"0", "x.0", "a.q", "b.q", "a.k", "top.a.q", "layer1.q", "layer10.q", "wo", "x.two"}


@pytest.mark.parametrize(
    ("modules", "kind"),
    [
        ({"a.q", "b.q", "top.a.q", "layer1.q", "layer10.q"}, ["q"]),
        ({"a.k", "layer1.q"}, ["a.k", "layer1.q"]),
        ({"0"}, str),
        ({"a.q"}, str),
    ],
)
def test_modules_are_matched_alone(modules: set[str], kind: Any) -> None:
    found = _named(modules, KNOWN)
    assert isinstance(found, str) if kind is str else found == kind
    config = LoraConfig(target_modules=found)
    assert {module for module in KNOWN if check_target_module_exists(config, module)} == modules


@pytest.mark.parametrize(
    ("modules", "forward"),
    [({"a.k", "wo"}, {"wo"}), ({"a.q", "x.two", "wo"}, set()), ({"0", "x.0"}, {"0"}), ({"wo", "x.two"}, {"x.two"})],
)
def test_feedforward_is_matched_alone(modules: set[str], forward: set[str]) -> None:
    config = IA3Config(**_gated(modules, forward, KNOWN))
    assert {module for module in KNOWN if check_target_module_exists(config, module)} == modules
    assert {module for module in modules if IA3Model._check_target_module_feedforward(config, module)} == forward


class Mixed(nn.Module):
    """A convolution, an embedding and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(9, 8)
        self.line = nn.Conv1d(8, 6, 3)
        self.plane = nn.Conv2d(6, 6, (1, 2))
        self.out = nn.Linear(6, 4)
        self.config = SimpleNamespace(to_dict=dict, get=lambda *_: None, tie_word_embeddings=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.line(self.words(x).transpose(1, 2))
        found: torch.Tensor = self.out(self.plane(rows[..., None, :]).flatten(2).mean(-1))
        return found


@pytest.mark.parametrize("space", ["auto", "core", "knots"])
def test_convolutions_and_embeddings(space: Any, tmp_path: Path) -> None:
    base = MemoryCheckpoint({name: tensor.clone() for name, tensor in Mixed().state_dict().items()})
    members: dict[str, Any] = {}
    for number in range(2):
        config = LoraConfig(r=2 + number, target_modules=["words", "line", "plane", "out"])
        model = get_peft_model(Mixed(), config)
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(tmp_path / f"a{number}")
        members[f"a{number}"] = AdapterCheckpoint(base, tmp_path / f"a{number}")
    adapter = fuse_adapters(SimpleAverage(), ModelPool(models=members, base=base), space=space)
    save_adapter(adapter, tmp_path / "out")
    again = AdapterCheckpoint(base, tmp_path / "out")
    merged = Mixed()
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            expected = sum(member[name] for member in members.values()) / 2
            torch.testing.assert_close(again[name], expected, rtol=1e-5, atol=1e-5)
            parameter.copy_(expected)
    words = torch.tensor([[1, 5, 8, 2, 2, 7]])
    live = PeftModel.from_pretrained(Mixed(), tmp_path / "out").eval()
    torch.testing.assert_close(live(words), merged(words), rtol=1e-5, atol=1e-5)


def test_a_base_without_the_prefix_of_the_adapter(workshop: Any, tmp_path: Path) -> None:
    """Modules keep the names that the adapter's files gave them; what stands beside them is called alike."""
    base = MemoryCheckpoint({"a.q.weight": torch.randn(4, 3), "a.norm.weight": torch.randn(4)})
    member = workshop.lora(base, {"bert.a.q": (torch.randn(4, 1), torch.randn(1, 3))})
    save_adapter(fuse_adapters(SimpleAverage(), workshop.pool(base, member)), tmp_path / "out")
    written = AdapterCheckpoint(base, tmp_path / "out")
    assert set(written.tensors) == {f"base_model.model.bert.a.q.lora_{part}.weight" for part in "AB"}
    torch.testing.assert_close(written["a.q.weight"], member["a.q.weight"])


def test_what_no_module_holds_is_refused(tmp_path: Path) -> None:
    """A parameter beside factors, directly in a module that holds adapted ones, cannot be saved by PEFT."""
    base = MemoryCheckpoint({"layer.q.weight": torch.randn(4, 3), "layer.gate": torch.randn(5)})
    model = MemoryCheckpoint({name: tensor + 1 for name, tensor in ((n, base[n]) for n in base)})
    with pytest.raises(ConfigError, match=r"'layer\.gate' has no module of its own"):
        save_adapter(extract_adapter(model, base, rank=1, others="save"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
