"""Image classifiers of transformers: every value in its place, heads told apart and put onto other bodies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForImageClassification

from fusion_bench import SimpleAverage, TaskArithmetic, fuse, open_modelpool
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.with_head import Headless, Heads, WithHead
from fusion_bench.errors import AlignmentError, CheckpointError, ConfigError
from fusion_bench.family import family_of
from fusion_bench.family.image_classifier import ImageClassification
from fusion_bench.family.loading import checkpoint_names
from fusion_bench.family.vision import Headed, ImageClassifier

CPU = torch.device("cpu")
FAMILY = ImageClassification()
VIT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
# Class -> settings beside the number of classes.
KINDS: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": VIT,
    "DeiTForImageClassification": VIT,
    "DeiTForImageClassificationWithTeacher": VIT,
    "Dinov2ForImageClassification": {**VIT, "layerscale_value": 0.5},
    "BeitForImageClassification": VIT,
    "ResNetForImageClassification": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "RegNetForImageClassification": {**STAGES, "embedding_size": 8, "groups_width": 8},
    "ConvNextForImageClassification": {**STAGES, "num_stages": 2},
    "ConvNextV2ForImageClassification": {**STAGES, "num_stages": 2},
    "SwinForImageClassification": {
        "image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2
    },
}  # fmt: skip


def classifier(kind: str = "ResNetForImageClassification", seed: int = 0, classes: int = 3) -> Any:
    torch.manual_seed(seed)
    cls = getattr(transformers, kind)
    labels = {number: f"class {number} of {seed}" for number in range(classes)}
    config = cls.config_class(**KINDS[kind], id2label=labels, label2id={label: n for n, label in labels.items()})
    model = cls(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1 if "running" in name else torch.randn_like(tensor) * 0.1)
            elif "num_batches_tracked" in name:
                tensor.fill_(seed)
    return model


def saved(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return open_checkpoint(folder)


def pixels() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def scores(checkpoint: Any) -> torch.Tensor:
    family = family_of(checkpoint.config)
    assert isinstance(family, ImageClassifier)
    with torch.no_grad():
        return family.logits(family.load(checkpoint, torch.float32, CPU), pixels())


def plain(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=pixels()).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_scores_are_the_files(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = classifier(kind)
    checkpoint = saved(model, tmp_path)
    capfd.readouterr()
    module = FAMILY.load(checkpoint, torch.float32, CPU)
    assert capfd.readouterr().err == ""
    assert type(module).__name__ == kind
    assert not module.training
    names = checkpoint_names(module)
    assert {names.get(name, name) for name in module.state_dict()} == set(checkpoint)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, checkpoint[names.get(name, name)]), name
        assert torch.equal(tensor, model.state_dict()[name]), name
    with torch.no_grad():
        torch.testing.assert_close(FAMILY.logits(module, pixels()), plain(model), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_refilling_changes_every_value(kind: str, tmp_path: Path) -> None:
    module = FAMILY.load(saved(classifier(kind), tmp_path / "a"), torch.float32, CPU)
    other = classifier(kind, seed=1)
    FAMILY.reload(module, saved(other, tmp_path / "b"), threads=2)
    for name, tensor in other.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_what_follows_the_backbone(kind: str, tmp_path: Path) -> None:
    small, large = (saved(classifier(kind, classes=n), tmp_path / str(n)) for n in (3, 5))
    heads = FAMILY.head_names(small.config, small.infos)
    assert heads == {name for name in small if small.info(name).shape != large.info(name).shape}
    assert isinstance(FAMILY, Headed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_saved_alone_is_a_base_for_classifiers(kind: str, tmp_path: Path) -> None:
    model = classifier(kind)
    backbone = getattr(model, model.base_model_prefix)
    alone = type(backbone)(model.config)
    alone.load_state_dict(backbone.state_dict(), strict=False)
    alone.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "x")
    pool = open_modelpool({"type": "folder", "path": str(tmp_path), "own_heads": True})
    assert pool.base is not None
    assert set(pool.alignment.names) == set(pool.models["x"])
    for name in pool.base:
        assert torch.equal(pool.base[name], pool.models["x"][name]), name
    torch.testing.assert_close(scores(WithHead(pool.base, pool.heads["x"])), plain(model))


def test_names_of_a_live_module_are_taken_too() -> None:
    """A state dict has transformers' own names, not those of its files."""
    model = classifier("ViTForImageClassification")
    checkpoint = MemoryCheckpoint.of_module(model)
    assert "vit.layers.0.attention.q_proj.weight" in checkpoint
    torch.testing.assert_close(scores(checkpoint), plain(model))


def test_scores_are_differentiable(tmp_path: Path) -> None:
    module = FAMILY.load(saved(classifier("ViTForImageClassification"), tmp_path), torch.float32, CPU)
    module.requires_grad_(True)
    FAMILY.logits(module, pixels()).square().sum().backward()
    still = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in still if not name.endswith("k_proj.bias")] == []


def test_running_statistics_are_averaged_and_counters_copied(tmp_path: Path) -> None:
    models = {f"m{seed}": saved(classifier(seed=seed), tmp_path / str(seed)) for seed in (1, 2)}
    base = saved(classifier(), tmp_path / "base")
    fused = fuse(SimpleAverage(), models, base)
    running = [name for name in fused if "running_var" in name]
    counters = [name for name in fused if "num_batches_tracked" in name]
    assert running
    assert counters
    for name in running:
        torch.testing.assert_close(fused[name], (models["m1"][name] + models["m2"][name]) / 2)
    assert {int(fused[name]) for name in counters} == {0}


def test_layers(tmp_path: Path) -> None:
    checkpoint = saved(classifier("SwinForImageClassification"), tmp_path)
    linear = FAMILY.structure(checkpoint.config, checkpoint.infos).linear
    assert not [name for name in linear if "relative_position" in name or "embeddings" in name]
    assert "swin.encoder.layers.0.blocks.0.attention.self.query.weight" in linear
    resnet = saved(classifier(), tmp_path / "resnet")
    found = FAMILY.structure(resnet.config, resnet.infos)
    assert found.linear == {"classifier.1.weight"}
    assert found.depth("resnet.embedder.embedder.convolution.weight") == 0


def test_image_size() -> None:
    assert FAMILY.image_size({"image_size": 16}) == 16
    assert FAMILY.image_size({"image_size": [16, 16]}) == 16
    assert FAMILY.image_size({}) is None


@pytest.fixture
def experts(tmp_path: Path) -> Callable[..., Any]:
    """A folder pool of three classifiers with 2, 3 and 5 classes, and what opens it."""
    for name, seed, classes in (("base", 0, 2), ("x", 1, 3), ("y", 2, 5)):
        classifier("ViTForImageClassification", seed, classes).save_pretrained(tmp_path / name)

    def opened(**keys: Any) -> Any:
        return open_modelpool({"type": "folder", "path": str(tmp_path), **keys})

    return opened


def test_a_fused_backbone_answers_with_the_head_of_each_task(experts: Callable[..., Any]) -> None:
    pool = experts(own_heads=True)
    whole = experts()
    fused = fuse(TaskArithmetic(scaling_factor=0.4), pool)
    assert not [name for name in fused if name.startswith("classifier")]
    heads = pool.heads
    assert list(heads) == ["x", "y"]
    for name, classes in (("x", 3), ("y", 5)):
        model = WithHead(fused, heads[name])
        assert model.config["id2label"] == whole.models[name].config["id2label"]
        assert scores(model).shape == (4, classes)
        # By hand: the arithmetic on the backbone, the expert's own head.
        names = [n for n in whole.base if not n.startswith("classifier")]
        deltas = {n: sum(whole.models[m][n] - whole.base[n] for m in ("x", "y")) for n in names}
        expected = {n: whole.base[n] + 0.4 * deltas[n] for n in names}
        expected |= {n: whole.models[name][n] for n in ("classifier.weight", "classifier.bias")}
        by_hand = scores(MemoryCheckpoint(expected, whole.models[name].config))
        torch.testing.assert_close(scores(model), by_hand, rtol=1e-5, atol=1e-6)


def test_one_model_with_its_own_head_is_that_model(experts: Callable[..., Any]) -> None:
    pool = experts(own_heads=True)
    again = WithHead(pool.models["x"], Heads(pool.models)["x"])
    whole = experts().models["x"]
    assert dict(again.config) == dict(whole.config)
    assert again.infos == whole.infos
    assert torch.equal(scores(again), scores(whole))


def test_a_body_alone_is_not_run_and_carries_no_classes(experts: Callable[..., Any]) -> None:
    body = experts(own_heads=True).models["x"]
    assert isinstance(body, Headless)
    assert not {"id2label", "label2id", "num_labels"} & body.config.keys()
    assert body.identity["part"] == "all but the head"
    with pytest.raises(CheckpointError, match=r"has no classification head.*pool\.heads"):
        scores(body)


def test_heads_of_different_shapes_do_not_fuse(experts: Callable[..., Any]) -> None:
    with pytest.raises(AlignmentError, match=r"classifier\.weight: \[3, 16\] instead of \[2, 16\]"):
        _ = experts().alignment
    assert experts(own_heads=True).alignment.names


def test_heads_are_asked_for_where_they_exist(experts: Callable[..., Any], pool: Path) -> None:
    with pytest.raises(CheckpointError, match="own_heads=true"):
        Heads(experts().models)["x"]
    with pytest.raises(ConfigError, match=r"own_heads=true: a is of model_type 't5'"):
        open_modelpool({"type": "folder", "path": str(pool), "own_heads": True}).models["a"]


def test_a_body_with_a_head_is_written_as_a_classifier(experts: Callable[..., Any], tmp_path: Path) -> None:
    from fusion_bench.checkpoint.writer import save

    pool = experts(own_heads=True)
    model = WithHead(fuse(SimpleAverage(), pool), Heads(pool.models)["y"])
    save(model, tmp_path / "out")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(plain(again.eval()), scores(model))
    assert again.config.id2label[4] == "class 4 of 2"


def test_empty_heads_are_refused() -> None:
    with pytest.raises(CheckpointError, match="head holds no tensors"):
        WithHead(MemoryCheckpoint({"x": torch.ones(2)}), MemoryCheckpoint({}))
