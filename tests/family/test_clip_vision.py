"""Towers of CLIP and SigLIP: read in every layout, run as transformers runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from fusion_bench.checkpoint.align import align
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import CheckpointError
from fusion_bench.family import family_of
from fusion_bench.family.clip_vision import ClipVision
from fusion_bench.family.loading import checkpoint_names
from fusion_bench.family.parts import part_of
from fusion_bench.family.vision import VisionTower

CPU = torch.device("cpu")
FAMILY = ClipVision()
SHAPE: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
TEXT = {**SHAPE, "vocab_size": 30, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}


def tower(seed: int = 0) -> CLIPVisionModel:
    torch.manual_seed(seed)
    return CLIPVisionModel(CLIPVisionConfig(**SHAPE)).eval()


def clip(seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    return CLIPModel(CLIPConfig(vision_config=SHAPE, text_config=TEXT, projection_dim=8)).eval()


def old(checkpoint: MemoryCheckpoint) -> MemoryCheckpoint:
    """The same tower as transformers 4 saved it."""
    tensors = {f"vision_model.{name}": tensor for name, tensor in checkpoint.items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    return MemoryCheckpoint(tensors, checkpoint.config)


def pixels(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(9))


def load(checkpoint: Any, dtype: torch.dtype = torch.float32) -> Any:
    return family_of(checkpoint.config).load(checkpoint, dtype, CPU)


@pytest.mark.parametrize("layout", ["5", "4"])
def test_values_are_the_files_in_both_layouts(layout: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = tower()
    checkpoint = MemoryCheckpoint.of_module(model)
    module = load(checkpoint if layout == "5" else old(checkpoint))
    assert type(module) is CLIPVisionModel
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert dict(checkpoint_names(module)) == {}
    for name, value in model.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    with torch.no_grad():
        torch.testing.assert_close(FAMILY.features(module, pixels()), model(pixels()).pooler_output, rtol=0, atol=0)
    assert capfd.readouterr().err == ""


def test_both_layouts_align_under_the_names_of_transformers_5() -> None:
    first = MemoryCheckpoint.of_module(tower())
    second = FAMILY.arranged(old(MemoryCheckpoint.of_module(tower(1))))
    assert align(first, {"second": second}).names == tuple(first)
    assert FAMILY.arranged(first) is first
    assert torch.equal(second["encoder.layers.1.mlp.fc1.weight"], tower(1).encoder.layers[1].mlp.fc1.weight)


def test_names_of_two_layouts_in_one_file_are_refused() -> None:
    checkpoint = MemoryCheckpoint.of_module(tower())
    mixed = {**checkpoint, "vision_model.post_layernorm.bias": torch.ones(16)}
    with pytest.raises(CheckpointError, match="with and without the prefix"):
        load(MemoryCheckpoint(mixed, checkpoint.config))


def test_every_tensor_must_have_its_place() -> None:
    checkpoint = MemoryCheckpoint.of_module(tower())
    tensors = dict(checkpoint)
    tensors["visual_projection.weight"] = torch.ones(8, 16)
    del tensors["post_layernorm.bias"]
    with pytest.raises(CheckpointError) as caught:
        load(MemoryCheckpoint(tensors, checkpoint.config))
    assert "'visual_projection.weight' has no place" in str(caught.value)
    assert "'post_layernorm.bias' of CLIPVisionModel is missing" in str(caught.value)


def test_features_are_what_clip_projects() -> None:
    model = clip()
    part = part_of(MemoryCheckpoint.of_module(model), "vision")
    with torch.no_grad():
        features = FAMILY.features(load(part), pixels())
        whole = model.get_image_features(pixel_values=pixels()).pooler_output
        torch.testing.assert_close(features @ model.visual_projection.weight.T, whole, rtol=1e-6, atol=1e-6)
    assert FAMILY.projected is False


def test_features_are_differentiable_in_every_parameter() -> None:
    module = load(MemoryCheckpoint.of_module(tower())).requires_grad_(True)
    # Not the sum: a layer norm's outputs sum to what does not depend on its inputs.
    FAMILY.features(module, pixels()).square().sum().backward()
    still = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Adding the same to every key changes no attention.
    assert [name for name in still if not name.endswith("k_proj.bias")] == []


def test_refilling_changes_every_value_in_either_layout() -> None:
    module = load(MemoryCheckpoint.of_module(tower()))
    addresses = [parameter.data_ptr() for parameter in module.parameters()]
    FAMILY.reload(module, old(MemoryCheckpoint.of_module(tower(1))), threads=2)
    assert [parameter.data_ptr() for parameter in module.parameters()] == addresses
    for name, value in tower(1).state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_half_precision() -> None:
    module = load(MemoryCheckpoint.of_module(tower()), torch.bfloat16)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert FAMILY.features(module, pixels().bfloat16()).dtype == torch.bfloat16


def test_the_vision_part_of_a_full_clip(tmp_path: Path) -> None:
    model = clip()
    config = model.config.to_dict()
    # As the published files of transformers 4 have it: defaults of text generation, a second copy of the settings.
    config["vision_config"] |= {"num_beams": 1, "torchscript": False, "id2label": {"0": "LABEL_0"}, "patch_size": 4}
    config["vision_config_dict"] = {"patch_size": 8}
    tensors = {**model.state_dict(), "vision_model.embeddings.position_ids": torch.arange(5)[None]}
    whole = MemoryCheckpoint(tensors, config, tmp_path, {"path": "x"})
    part = part_of(whole, "vision")
    assert list(part) == sorted(tower().state_dict())
    assert part.config["model_type"] == "clip_vision_model"
    assert part.config["patch_size"] == 8
    assert part.folder == tmp_path
    assert part.identity == {"path": "x", "part": "vision"}
    module = load(part)
    for name, value in model.vision_model.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    assert part_of(whole, None) is whole


def test_a_part_that_is_not_there_is_refused() -> None:
    model = clip()
    texts = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vision_model.")}
    with pytest.raises(CheckpointError, match=r"no tensor is called vision_model"):
        part_of(MemoryCheckpoint(texts, model.config.to_dict()), "vision")
    with pytest.raises(CheckpointError, match=r"part=vision asks for a vision tower.*'t5'"):
        part_of(MemoryCheckpoint({"x": torch.ones(2)}, {"model_type": "t5"}), "vision")


def test_layers() -> None:
    checkpoint = MemoryCheckpoint.of_module(tower())
    found = FAMILY.structure(checkpoint.config, checkpoint.infos)
    layers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    assert found.linear == {f"encoder.layers.{i}.{layer}.weight" for i in range(2) for layer in layers}
    assert found.transposed == frozenset()
    assert [found.depth(name) for name in ("embeddings.class_embedding", "pre_layrnorm.weight")] == [0, 0]
    assert found.depth("encoder.layers.0.mlp.fc1.bias") == 0
    assert found.depth("encoder.layers.1.mlp.fc1.bias") == found.depth("post_layernorm.weight") == 1
    whole = MemoryCheckpoint.of_module(clip())
    linear = family_of(whole.config).structure(whole.config, whole.infos).linear
    assert {"visual_projection.weight", "text_projection.weight"} & linear == set()


def test_image_size_and_kind() -> None:
    assert isinstance(FAMILY, VisionTower)
    assert FAMILY.image_size({"image_size": 16}) == 16
    assert FAMILY.image_size({}) == CLIPVisionConfig().image_size == SiglipVisionConfig().image_size


def test_siglip() -> None:
    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**SHAPE)).eval()
    module = load(old(MemoryCheckpoint.of_module(model)))
    with torch.no_grad():
        # torch pools by another route where no gradient is asked for.
        expected = model.requires_grad_(False)(pixels()).pooler_output
        torch.testing.assert_close(FAMILY.features(module, pixels()), expected, rtol=0, atol=0)
