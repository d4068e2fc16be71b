"""Checkpoints under other names, in parts, in another dtype, with ties declared."""

from __future__ import annotations

import pytest
import torch

from fusion_bench.checkpoint.base import Checkpoint, Dense
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.views import Cast, Renamed, Selected, WithAliases, WithConfig
from fusion_bench.errors import CheckpointError, ConfigError

SHARED = torch.randn(6, 2)
TENSORS = {
    "shared": SHARED, "head": SHARED, "norm": torch.randn(2), "steps": torch.tensor([3, 4]),
}  # fmt: skip


@pytest.fixture
def inner() -> Checkpoint:
    return MemoryCheckpoint(TENSORS, config={"model_type": "x"})


def test_renamed(inner: Checkpoint) -> None:
    view = Renamed(inner, {"shared": "a.shared", "head": "a.head"})
    assert list(view) == ["a.shared", "norm", "steps"]
    assert view.aliases == {"a.head": "a.shared"}
    assert torch.equal(view["a.head"], SHARED)
    assert torch.equal(view.read("a.head", 2, 5), SHARED.reshape(-1)[2:5])
    assert isinstance(view.delta("norm"), Dense)
    out = torch.empty(3)
    view.read_into("a.shared", 1, out)
    assert torch.equal(out, SHARED.reshape(-1)[1:4])
    assert "shared" not in view
    with pytest.raises(KeyError):
        view.read("shared")


def test_renamed_refuses_collisions_and_unknown_names(inner: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="several tensors: norm"):
        Renamed(inner, {"shared": "norm"})
    with pytest.raises(CheckpointError, match="no such tensors to rename: nothing"):
        Renamed(inner, {"nothing": "x"})
    assert torch.equal(Renamed(inner, {"shared": "norm", "norm": "shared"})["norm"], SHARED)


def test_selected(inner: Checkpoint) -> None:
    view = Selected(inner, ["norm", "shared"])
    assert list(view) == ["norm", "shared"]
    assert view.aliases == {}
    both = Selected(inner, ["head", "shared"])
    assert list(both) == ["shared"]
    assert both.aliases == {"head": "shared"}
    alone = Selected(inner, ["head"])
    assert list(alone) == ["head"]
    assert torch.equal(alone["head"], SHARED)
    with pytest.raises(CheckpointError, match="no such tensors to select: x, y"):
        Selected(inner, ["y", "x", "norm"])


def test_cast(inner: Checkpoint) -> None:
    view = Cast(inner, "bfloat16")
    assert view["norm"].dtype == torch.bfloat16
    assert torch.equal(view["norm"], TENSORS["norm"].bfloat16())
    assert view["steps"].dtype == torch.int64
    assert {info.dtype for info in view.infos.values()} == {"BF16", "I64"}
    out = torch.empty(2, dtype=torch.bfloat16)
    view.read_into("head", 4, out)
    assert torch.equal(out, SHARED.reshape(-1)[4:6].bfloat16())
    with pytest.raises(ConfigError, match="Did you mean 'float16'"):
        Cast(inner, "flot16")


@pytest.mark.parametrize("spelled", ["bf16", "BF16", "bfloat16", "torch.bfloat16"])
def test_spellings_of_dtypes(inner: Checkpoint, spelled: str) -> None:
    assert Cast(inner, spelled).info("norm").dtype == "BF16"


def test_with_config(inner: Checkpoint) -> None:
    assert WithConfig(inner, {"a": 1}).config == {"a": 1}
    assert inner.config == {"model_type": "x"}


TIES = {"encoder.embed": "shared", "decoder.embed": "shared", "lm_head": "shared"}


def checkpoint(**tensors: torch.Tensor) -> Checkpoint:
    return MemoryCheckpoint({name.replace("__", "."): tensor for name, tensor in tensors.items()})


def test_separately_stored_aliases_collapse_to_their_target() -> None:
    one, two = torch.ones(2), torch.zeros(2)
    view = WithAliases(checkpoint(shared=one, encoder__embed=one.clone(), decoder__embed=two, x=two.clone()), TIES)
    assert list(view) == ["shared", "x"]
    assert view.aliases == {"decoder.embed": "shared", "encoder.embed": "shared", "lm_head": "shared"}
    assert torch.equal(view["decoder.embed"], one)
    assert torch.equal(view["lm_head"], one)


def test_without_the_target_the_first_stored_alias_is_stored() -> None:
    view = WithAliases(checkpoint(decoder__embed=torch.ones(2), lm_head=torch.zeros(2)), TIES)
    assert list(view) == ["decoder.embed"]
    assert torch.equal(view["shared"], torch.ones(2))
    assert torch.equal(view["lm_head"], torch.ones(2))


def test_ties_of_which_nothing_is_stored_are_ignored() -> None:
    view = WithAliases(checkpoint(x=torch.ones(2)), TIES)
    assert list(view) == ["x"]
    assert view.aliases == {}


def test_ties_that_the_checkpoint_knows_under_another_name() -> None:
    tensor = torch.ones(2)
    view = WithAliases(checkpoint(encoder__embed=tensor, shared=tensor, lm_head=tensor), TIES)
    assert list(view) == ["encoder.embed"]
    assert view.stored("decoder.embed") == view.stored("shared") == "encoder.embed"


def test_ties_among_names_that_are_all_aliases_already() -> None:
    tensor = torch.ones(2)
    view = WithAliases(checkpoint(other=tensor, shared=tensor, lm_head=tensor), TIES)
    assert list(view) == ["other"]
    assert {view.stored(name) for name in ("shared", "lm_head", "encoder.embed", "decoder.embed")} == {"other"}


def test_chains_of_ties() -> None:
    view = WithAliases(checkpoint(a=torch.ones(1)), {"c": "b", "b": "a"})
    assert view.aliases == {"b": "a", "c": "a"}


def test_ties_between_different_shapes_are_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"lm_head is \[3\], shared \[2\]"):
        WithAliases(checkpoint(shared=torch.ones(2), lm_head=torch.ones(3)), TIES)


def test_views_of_views_read_through() -> None:
    view = Cast(Selected(Renamed(WithAliases(checkpoint(shared=SHARED), TIES), {"shared": "s"}), ["lm_head"]), "F64")
    assert list(view) == ["lm_head"]
    assert torch.equal(view["lm_head"], SHARED.double())
