"""Adapter folders: what is refused and why, where names are found, what an adapter says of its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_bench.checkpoint.adapter import AdapterCheckpoint
from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.peft_config import adapter_base
from fusion_bench.errors import CheckpointError

Q = "encoder.layer.0.q"


def lora(rank: int = 2, rows: int = 6, columns: int = 4, module: str = Q) -> dict[str, torch.Tensor]:
    prefix = f"base_model.model.{module}"
    return {
        f"{prefix}.lora_A.weight": torch.randn(rank, columns),
        f"{prefix}.lora_B.weight": torch.randn(rows, rank),
    }


def folder(path: Path, tensors: dict[str, torch.Tensor], pickled: bool = False, **settings: Any) -> Path:
    path.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **settings}
    (path / "adapter_config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(tensors, path / "adapter_model.bin")
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "adapter_model.safetensors")
    return path


def base(*names: str, shape: tuple[int, ...] = (6, 4), **others: torch.Tensor) -> Checkpoint:
    tensors = {name: torch.randn(shape) for name in names or (f"{Q}.weight", "norm.weight")}
    return MemoryCheckpoint({**tensors, **others}, config={"model_type": "x"})


def change(tensors: dict[str, torch.Tensor], scale: float = 2.0) -> torch.Tensor:
    down, up = tensors.values()
    return scale * (up @ down)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("layer_replication", [[0, 2]]), ("target_parameters", ["x.weight"]), ("trainable_token_indices", [1]),
        ("megatron_config", {"a": 1}), ("alora_invocation_tokens", [1]), ("use_qalora", True), ("use_bdlora", {"a": 1}),
        ("arrow_config", {"top_k": 1}), ("kasa_config", {"a": 1}), ("velora_config", {"a": 1}),
        ("monteclora_config", {"a": 1}), ("of_a_later_version", True), ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "olora"), ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"), ("init_lora_weights", "lora_ga"),
    ],
)  # fmt: skip
def test_what_changes_the_function_otherwise_is_refused_by_name(tmp_path: Path, setting: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{setting}=.*merge_and_unload"):
        AdapterCheckpoint(base(), folder(tmp_path, lora(), **{setting: value}))


@pytest.mark.parametrize("kind", ["ADALORA", "LOHA", "LOKR", "OFT", "PREFIX_TUNING", None])
def test_other_techniques_are_refused_by_name(tmp_path: Path, kind: str | None) -> None:
    with pytest.raises(CheckpointError, match=f"peft_type {kind!r} is not read"):
        AdapterCheckpoint(base(), folder(tmp_path, lora(), peft_type=kind))


def test_settings_of_training_are_accepted(tmp_path: Path) -> None:
    settings = {
        "lora_dropout": 0.1, "inference_mode": True, "init_lora_weights": "gaussian", "megatron_core": "megatron.core",
        "layers_to_transform": [0], "target_modules": ["q"], "of_a_later_version": None, "another": False, "third": {},
        "qalora_group_size": 16, "revision": "main", "runtime_config": {"ephemeral_gpu_offload": False},
    }  # fmt: skip
    tensors, original = lora(), base()
    adapter = AdapterCheckpoint(original, folder(tmp_path, tensors, **settings))
    torch.testing.assert_close(adapter[f"{Q}.weight"], original[f"{Q}.weight"] + change(tensors))


@pytest.mark.parametrize(("r", "alpha"), [(0, 4), (-1, 4), ("2", 4), (None, 4), (2, None), (True, 1)])
def test_ranks_and_alphas_that_are_no_numbers(tmp_path: Path, r: Any, alpha: Any) -> None:
    with pytest.raises(CheckpointError, match="must be numbers"):
        AdapterCheckpoint(base(), folder(tmp_path, lora(), r=r, lora_alpha=alpha))


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    tensors = {
        **lora(module="missing.one"),
        **lora(module="missing.two"),
        **lora(rows=5, module=Q),
        "base_model.model.other.lora_A.weight": torch.ones(2, 4),
        "base_model.model.third.lora_E": torch.ones(2, 1),
        "base_model.model.unknown.bias": torch.ones(2),
    }
    original = base(f"{Q}.weight", "other.weight")
    with pytest.raises(CheckpointError) as caught:
        AdapterCheckpoint(original, folder(tmp_path, tensors))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: does not fit its base (6 faults)")
    for words in (
        "missing.one: the base has no missing.one.weight",
        "missing.two: the base has no missing.two.weight",
        f"{Q}: factors [5, 2] and [2, 4] do not fit the base's [6, 4] and rank 2",
        "other: incomplete, the file holds only its A",
        "third.lora_E: a parameter of another technique",
        "unknown.bias: the base has no such tensor",
    ):
        assert words in message


def test_rank_must_be_that_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rank 2"):
        AdapterCheckpoint(base(), folder(tmp_path, lora(rank=3)))
    AdapterCheckpoint(base(), folder(tmp_path, lora(rank=3), rank_pattern={"q": 3}))


def test_empty_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter parameters"):
        AdapterCheckpoint(base(), folder(tmp_path, {}))


def test_dora_without_magnitudes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="contradicts"):
        AdapterCheckpoint(base(), folder(tmp_path, lora(), use_dora=True))


def test_dora_keeps_zero_weights_zero(tmp_path: Path) -> None:
    tensors = lora()
    tensors[f"base_model.model.{Q}.lora_B.weight"][2] = 0
    original = torch.randn(6, 4)
    original[2] = 0
    tensors[f"base_model.model.{Q}.lora_magnitude_vector"] = torch.ones(6)
    adapter = AdapterCheckpoint(MemoryCheckpoint({f"{Q}.weight": original}), folder(tmp_path, tensors, use_dora=True))
    found = adapter[f"{Q}.weight"]
    assert torch.equal(found[2], torch.zeros(4))
    torch.testing.assert_close(found.norm(dim=1)[[0, 1, 3, 4, 5]], torch.ones(5))


def test_quantised_bases_are_refused(tmp_path: Path) -> None:
    original = MemoryCheckpoint({f"{Q}.weight": torch.zeros(6, 4, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match="quantised"):
        AdapterCheckpoint(original, folder(tmp_path, lora()))


def test_lora_bias_needs_a_bias(tmp_path: Path) -> None:
    tensors = {**lora(), f"base_model.model.{Q}.lora_B.bias": torch.ones(6)}
    with pytest.raises(CheckpointError, match="needs a bias in the base"):
        AdapterCheckpoint(base(), folder(tmp_path, tensors, lora_bias=True))


def test_two_edits_of_one_tied_tensor_are_refused(tmp_path: Path) -> None:
    tied = torch.randn(6, 4)
    original = MemoryCheckpoint({"a.weight": tied, "b.weight": tied})
    with pytest.raises(CheckpointError, match=r"b: changes the same tensor of the base as a \(a\.weight\)"):
        AdapterCheckpoint(original, folder(tmp_path, {**lora(module="a"), **lora(module="b")}))


def test_two_saved_tensors_for_one_of_the_base_are_refused(tmp_path: Path) -> None:
    tensors = {
        **lora(),
        "base_model.model.a.norm.x.weight": torch.ones(6, 4),
        "base_model.model.b.norm.x.weight": torch.ones(6, 4),
    }
    with pytest.raises(CheckpointError, match=r"b\.norm\.x\.weight: takes the place of the same tensor"):
        AdapterCheckpoint(base(f"{Q}.weight", "norm.x.weight"), folder(tmp_path, tensors, modules_to_save=["x"]))


# Names


@pytest.mark.parametrize(
    "name", [f"{Q}.weight", f"model.{Q}.weight", f"a.b.{Q}.weight", "layer.0.q.weight", "q.weight"]
)
def test_other_prefixes_of_the_base(tmp_path: Path, name: str) -> None:
    original, tensors = base(name, "x.other.weight"), lora()
    adapter = AdapterCheckpoint(original, folder(tmp_path, tensors))
    torch.testing.assert_close(adapter[name], original[name] + change(tensors))
    assert adapter.delta("x.other.weight") is None


def test_ambiguous_ends_are_no_match(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the base has no"):
        AdapterCheckpoint(base(f"a.{Q}.weight", f"b.{Q}.weight"), folder(tmp_path, lora()))


def test_saved_modules_that_the_base_lacks_join_it(tmp_path: Path) -> None:
    head = torch.randn(3, 4)
    tensors = {**lora(), "base_model.model.classifier.weight": head}
    adapter = AdapterCheckpoint(base(), folder(tmp_path, tensors, modules_to_save=["classifier"]))
    assert list(adapter) == ["classifier.weight", f"{Q}.weight", "norm.weight"]
    assert torch.equal(adapter["classifier.weight"], head)
    assert torch.equal(
        AdapterCheckpoint(base(), folder(tmp_path, tensors, task_type="SEQ_CLS"))["classifier.weight"], head
    )


def test_saved_modules_may_have_another_size(tmp_path: Path) -> None:
    """An embedding that was resized before training is part of the adapter as it is."""
    tensors = {**lora(), "base_model.model.norm.weight": torch.randn(9, 4)}
    adapter = AdapterCheckpoint(base(), folder(tmp_path, tensors, modules_to_save=["norm"]))
    assert adapter.info("norm.weight").shape == (9, 4)
    assert torch.equal(adapter["norm.weight"], tensors["base_model.model.norm.weight"])


# Folders


def test_pickled_adapters(tmp_path: Path) -> None:
    original, tensors = base(), lora()
    adapter = open_checkpoint(folder(tmp_path, tensors, pickled=True), base=original)
    torch.testing.assert_close(adapter[f"{Q}.weight"], original[f"{Q}.weight"] + change(tensors))


def test_missing_weights(tmp_path: Path) -> None:
    (folder(tmp_path, lora()) / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"Looked for adapter_model\.safetensors.*there is adapter_config\.json"):
        AdapterCheckpoint(base(), tmp_path)


def test_what_an_adapter_has_from_its_base(tmp_path: Path) -> None:
    original = base()
    adapter = AdapterCheckpoint(original, folder(tmp_path, lora()), commit="abc")
    assert adapter.base is original
    assert adapter.config == {"model_type": "x"}
    assert adapter.folder is None
    assert adapter.identity["commit"] == "abc"
    assert adapter.identity["base"] == {}
    (tmp_path / "tokenizer.json").touch()
    assert adapter.folder == tmp_path
    assert adapter.delta(f"{Q}.weight") is not None
    with pytest.raises(KeyError):
        adapter.delta("nothing")


def test_base_of_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(name: Any, **settings: Any) -> tuple[str, str | None]:
        return adapter_base(folder(tmp_path / "adapter", lora(), base_model_name_or_path=name, **settings))

    assert says("google/flan-t5-base") == ("google/flan-t5-base", None)
    assert says("google/flan-t5-base", revision="v1") == ("google/flan-t5-base", "v1")
    (tmp_path / "base").mkdir()
    assert Path(says("../base")[0]).resolve() == tmp_path / "base"
    assert says(str(tmp_path / "base")) == (str(tmp_path / "base"), None)
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert says("model") == ("model", None)
    (tmp_path / "adapter" / "model").mkdir()
    assert says("model") == (str(tmp_path / "adapter" / "model"), None)
    for nothing in (None, "", 3):
        with pytest.raises(CheckpointError, match="names no model"):
            says(nothing)


def test_headers_of_an_adapter_need_no_torch(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    import fusion_bench

    (tmp_path / "base").mkdir()
    save_file({f"{Q}.weight": torch.ones(6, 4)}, tmp_path / "base" / "model.safetensors")
    folder(tmp_path / "adapter", lora())
    code = f"""
import sys
from fusion_bench.checkpoint.open import open_checkpoint
adapter = open_checkpoint({str(tmp_path / "adapter")!r}, base=open_checkpoint({str(tmp_path / "base")!r}))
assert list(adapter) == [{Q + ".weight"!r}] and adapter.identity and adapter.delta is not None
assert "torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(fusion_bench.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
