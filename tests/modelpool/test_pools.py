"""Pools: what a member is, what is refused, how adapters find their base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_bench import SimpleAverage, TaskArithmetic, fuse, open_modelpool
from fusion_bench.errors import CheckpointError, ConfigError
from fusion_bench.modelpool.base import ModelPool


def folder(path: Path, **keys: object) -> ModelPool:
    return open_modelpool({"type": "folder", "path": str(path), **keys})


def test_names_are_the_folders_sorted(pool: Path) -> None:
    (pool / ".cache").mkdir()
    shutil.copytree(pool / "a", pool / ".hidden")
    (pool / "notes").mkdir()
    (pool / "notes" / "readme.txt").write_text("not a model")
    opened = folder(pool)
    assert list(opened.models) == ["a", "b", "c"]
    assert opened.base is not None


def test_select_keeps_the_asked_order(pool: Path) -> None:
    assert list(folder(pool, select=["c", "a"]).models) == ["c", "a"]
    with pytest.raises(ConfigError, match="'d'"):
        folder(pool, select=["d"])


def test_half_fetched_member_is_refused(pool: Path) -> None:
    (pool / "b" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="b hold a config"):
        folder(pool)


def test_empty_folder_is_no_pool(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no models in it"):
        folder(tmp_path)


def test_full_models_without_base(pool: Path) -> None:
    shutil.rmtree(pool / "base")
    opened = folder(pool)
    assert opened.base is None
    assert len(fuse(SimpleAverage(), opened)) > 0
    with pytest.raises(ConfigError, match=r"task_arithmetic.*base"):
        fuse(TaskArithmetic(), opened)


def adapters(tiny: Any, tmp_path: Path, base_reference: str) -> Path:
    model = tiny.t5()
    model.save_pretrained(tmp_path / "elsewhere")
    for number, name in enumerate("xy"):
        tiny.lora(model, tmp_path / "adapters" / name, number, base_reference)
    return tmp_path / "adapters"


@pytest.mark.parametrize("reference", ["absolute", "relative to the adapter", "Hub name"])
def test_adapters_bring_the_base_they_name(tiny: Any, tmp_path: Path, reference: str, hub: Path) -> None:
    named = {
        "absolute": str(tmp_path / "elsewhere"),
        "relative to the adapter": "../../elsewhere",
        "Hub name": "google/flan-t5-base",
    }[reference]
    opened = folder(adapters(tiny, tmp_path, named))
    assert list(opened.models) == ["x", "y"]
    assert opened.base is not None
    assert opened.models["x"].base is opened.base


def test_adapters_of_different_bases_are_refused(tiny: Any, tmp_path: Path) -> None:
    root = adapters(tiny, tmp_path, "../../elsewhere")
    config = json.loads((root / "y" / "adapter_config.json").read_text())
    (root / "y" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "some/other"}))
    with pytest.raises(ConfigError, match="different bases"):
        folder(root)


def test_adapter_beside_full_model(tiny: Any, pool: Path) -> None:
    tiny.lora(tiny.t5(), pool / "lora", 0, "nowhere")
    merged = fuse(SimpleAverage(), folder(pool, select=["lora", "a"]))
    from peft import PeftModel

    folded = PeftModel.from_pretrained(tiny.t5(), pool / "lora").merge_and_unload().state_dict()
    other = open_modelpool({"models": {"a": str(pool / "a")}}).models["a"]
    for name in merged:
        torch.testing.assert_close(merged[name], (folded[name] + other[name]) / 2, rtol=1e-6, atol=1e-7)


def test_nothing_is_opened_before_it_is_needed() -> None:
    opened = open_modelpool({"models": {"a": "not/there"}})
    assert list(opened.models) == ["a"]
    with pytest.raises(CheckpointError, match="not/there"):
        _ = opened.alignment


def test_flan_t5_base_count_from_the_header_alone(command: Callable[..., Any], tmp_path: Path) -> None:
    """The published count, out of a file as large as the real one that holds a header and a hole."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=32128, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_heads=12,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    header: dict[str, Any] = {}
    offset = 0
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes["lm_head.weight"] = [32128, 768]
    for name, shape in sorted(shapes.items()):
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "flan").mkdir()
    with (tmp_path / "flan" / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (tmp_path / "flan" / "config.json").write_text(json.dumps({**config.to_dict(), "tie_word_embeddings": False}))
    ran = command("modelpool=flan-t5-base_individual", "modelpool.models.0.path=flan", "method=dummy", "taskpool=dummy")
    assert ran.status == 0, ran.err
    assert ran.out.strip() == (
        "{'model_info': {'trainable_params': 247577856, 'all_params': 247577856, 'trainable_percentage': 1.0}}"
    )


def test_broken_member_does_not_block_the_others(pool: Path) -> None:
    (pool / "b" / "model.safetensors").unlink()
    assert list(folder(pool, select=["a", "c"]).models) == ["a", "c"]


def test_tensor_that_no_version_reads_is_left_out(pool: Path) -> None:
    """Published T5 v1.0 files carry it; what transformers saves does not."""
    from safetensors.torch import load_file, save_file

    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    file = pool / "base" / "model.safetensors"
    save_file({**load_file(file), name: torch.zeros(32, 2)}, file, metadata={"format": "pt"})
    assert name not in folder(pool).alignment.names


def test_two_runs_into_one_folder(tmp_path: Path) -> None:
    from fusion_bench.checkpoint.staging import claimed
    from fusion_bench.errors import OutputError

    with claimed(tmp_path / "out"), pytest.raises(OutputError, match="another run"), claimed(tmp_path / "out"):
        pass
