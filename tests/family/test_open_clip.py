"""Towers under the names of OpenCLIP, against transformers' own tower with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fusion_bench.checkpoint.base import TensorInfo
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import CheckpointError
from fusion_bench.family import family_of
from fusion_bench.family.loading import checkpoint_names
from fusion_bench.family.open_clip import MODEL_TYPE, OpenClipVision
from fusion_bench.family.open_clip_names import config_of
from fusion_bench.family.parts import part_of
from fusion_bench.family.vision import VisionTower

CPU = torch.device("cpu")
FAMILY = OpenClipVision()
ACT = {"model_type": MODEL_TYPE, "hidden_act": "quick_gelu"}


def reference(seed: int = 0, width: int = 128, act: str = "quick_gelu") -> Any:
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=40, num_hidden_layers=3, num_attention_heads=max(1, width // 64),
        image_size=12, patch_size=4, projection_dim=10, hidden_act=act,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def named(model: Any) -> dict[str, torch.Tensor]:
    """The weights of transformers' tower as OpenCLIP would save them."""
    tower, found = model.vision_model, {}
    found["conv1.weight"] = tower.embeddings.patch_embedding.weight
    found["class_embedding"] = tower.embeddings.class_embedding
    found["positional_embedding"] = tower.embeddings.position_embedding.weight
    found["proj"] = model.visual_projection.weight.T
    parts = {"ln_pre": tower.pre_layrnorm, "ln_post": tower.post_layernorm}
    for number, layer in enumerate(tower.encoder.layers):
        block = f"transformer.resblocks.{number}"
        attention = layer.self_attn
        for kind in ("weight", "bias"):
            three = [getattr(p, kind) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
            found[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
        parts |= {
            f"{block}.attn.out_proj": attention.out_proj, f"{block}.mlp.c_fc": layer.mlp.fc1,
            f"{block}.mlp.c_proj": layer.mlp.fc2, f"{block}.ln_1": layer.layer_norm1,
            f"{block}.ln_2": layer.layer_norm2,
        }  # fmt: skip
    found |= {f"{name}.{kind}": getattr(part, kind) for name, part in parts.items() for kind in ("weight", "bias")}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def prefixed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("prefix", ["", "visual.", "model.visual."])
@pytest.mark.parametrize(("width", "act"), [(128, "quick_gelu"), (128, "gelu"), (32, "quick_gelu")])
def test_features_are_those_of_transformers(prefix: str, width: int, act: str) -> None:
    model = reference(width=width, act=act)
    checkpoint = MemoryCheckpoint(prefixed(named(model), prefix), {"model_type": MODEL_TYPE, "hidden_act": act})
    module = FAMILY.load(checkpoint, torch.float32, CPU)
    assert not module.training
    with torch.no_grad():
        torch.testing.assert_close(
            FAMILY.features(module, pixels()), model(pixels()).image_embeds, rtol=1e-5, atol=1e-5
        )
    assert FAMILY.projected is True
    assert isinstance(FAMILY, VisionTower)


def test_the_two_activations_differ() -> None:
    both = []
    for act in ("quick_gelu", "gelu"):
        checkpoint = MemoryCheckpoint(named(reference()), {**ACT, "hidden_act": act})
        both.append(FAMILY.features(FAMILY.load(checkpoint, torch.float32, CPU), pixels()))
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_parameters_go_by_the_names_of_the_file() -> None:
    tensors = named(reference())
    module = FAMILY.load(MemoryCheckpoint(tensors, ACT), torch.float32, CPU)
    names = checkpoint_names(module)
    found = {names.get(name, name): parameter for name, parameter in module.named_parameters()}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_every_linear_weight_is_multiplied_by_a_linear_layer() -> None:
    checkpoint = part_of(MemoryCheckpoint(named(reference()), ACT), None)
    module = FAMILY.load(checkpoint, torch.float32, CPU)
    names = checkpoint_names(module)
    heard: dict[str, torch.Size] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            name = names.get(f"{path}.weight", f"{path}.weight")
            layer.register_forward_pre_hook(lambda _, inputs, name=name: heard.update({name: inputs[0].shape}))
    FAMILY.features(module, pixels())
    assert heard.keys() == FAMILY.structure(checkpoint.config, checkpoint.infos).linear
    assert heard["transformer.resblocks.0.attn.in_proj_weight"] == (5, 10, 128)


def test_features_are_differentiable_in_every_parameter() -> None:
    module = FAMILY.load(MemoryCheckpoint(named(reference()), ACT), torch.float32, CPU).requires_grad_(True)
    FAMILY.features(module, pixels()).square().sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_refilling_changes_every_value() -> None:
    module = FAMILY.load(MemoryCheckpoint(named(reference()), ACT), torch.float32, CPU)
    other = reference(1)
    FAMILY.reload(module, MemoryCheckpoint(prefixed(named(other), "visual."), ACT))
    with torch.no_grad():
        torch.testing.assert_close(
            FAMILY.features(module, pixels()), other(pixels()).image_embeds, rtol=1e-5, atol=1e-5
        )


def test_the_config_follows_from_shapes() -> None:
    part = part_of(MemoryCheckpoint(prefixed(named(reference()), "visual.")), None)
    assert part.config == {
        "model_type": MODEL_TYPE, "hidden_size": 128, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_channels": 3, "patch_size": 4, "image_size": 12, "projection_dim": 10,
    }  # fmt: skip
    assert FAMILY.image_size(part.config) == 12
    assert isinstance(family_of(part.config), OpenClipVision)


@pytest.mark.parametrize(("width", "patch", "heads"), [(768, 32, 12), (768, 16, 12), (1024, 14, 16)])
def test_the_published_sizes(width: int, patch: int, heads: int) -> None:
    shapes = {
        "conv1.weight": (width, 3, patch, patch), "positional_embedding": ((224 // patch) ** 2 + 1, width),
        "transformer.resblocks.0.mlp.c_fc.weight": (4 * width, width), "proj": (width, 512),
    }  # fmt: skip
    config = config_of({name: TensorInfo("F32", shape) for name, shape in shapes.items()})
    assert (config["num_attention_heads"], config["image_size"], config["patch_size"]) == (heads, 224, patch)


def test_without_the_activation_nothing_is_run() -> None:
    with pytest.raises(CheckpointError, match=r"no hidden_act.*quick_gelu, gelu"):
        FAMILY.load(MemoryCheckpoint(named(reference())), torch.float32, CPU)


def test_the_side_for_texts_is_left_out_and_recorded() -> None:
    tensors = prefixed(named(reference()), "model.visual.")
    tensors |= {"model.logit_scale": torch.ones(()), "model.token_embedding.weight": torch.ones(7, 10)}
    whole = MemoryCheckpoint(tensors, identity={"path": "x"})
    assert part_of(whole, None) is whole
    part = part_of(whole, "vision")
    assert sorted(part) == sorted(named(reference()))
    assert part.identity == {"path": "x", "part": "vision", "left_out": 2}


def test_faults_of_a_tower_are_all_told() -> None:
    tensors = named(reference())
    tensors["transformer.resblocks.1.extra"] = tensors.pop("transformer.resblocks.1.ln_2.bias")
    tensors["ln_pre.bias"] = torch.ones(127)
    with pytest.raises(CheckpointError) as caught:
        FAMILY.load(MemoryCheckpoint(tensors, ACT), torch.float32, CPU)
    assert "'transformer.resblocks.1.extra' has no place in Tower" in str(caught.value)
    assert "'transformer.resblocks.1.ln_2.bias' of Tower is missing" in str(caught.value)
    assert "'ln_pre.bias' has the shape (127,), its place (128,)" in str(caught.value)


def test_what_is_no_tower_is_refused() -> None:
    tensors = named(reference())
    del tensors["proj"]
    with pytest.raises(CheckpointError, match="holds no such tower"):
        FAMILY.load(MemoryCheckpoint(tensors, ACT), torch.float32, CPU)
    tensors = {**named(reference()), "positional_embedding": torch.ones(9, 128)}
    with pytest.raises(CheckpointError, match="9 positions"):
        FAMILY.load(MemoryCheckpoint(tensors, ACT), torch.float32, CPU)


def test_layers() -> None:
    checkpoint = MemoryCheckpoint(named(reference()), ACT)
    found = FAMILY.structure(checkpoint.config, checkpoint.infos)
    layers = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    assert found.linear == {f"transformer.resblocks.{i}.{layer}" for i in range(3) for layer in layers}
    assert found.transposed == frozenset()
    early = ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight")
    assert [found.depth(name) for name in early] == [0, 0, 0, 0]
    assert [found.depth(f"transformer.resblocks.{i}.ln_1.bias") for i in range(3)] == [0, 0.5, 1]
    assert found.depth("proj") == found.depth("ln_post.weight") == 1
