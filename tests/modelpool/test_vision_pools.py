"""Pools of image encoders: parts of full models, adapters, OpenCLIP files, the shipped configurations."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from fusion_bench import SimpleAverage, TaskArithmetic, fuse, open_modelpool
from fusion_bench.checkpoint.writer import save
from fusion_bench.errors import AlignmentError, CheckpointError, ConfigError
from fusion_bench.family import family_of
from fusion_bench.family.vision import VisionTower

CONFIGS = Path(__file__).resolve().parents[2] / "src" / "fusion_bench" / "configs" / "modelpool"
CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
TEXT = {**SHAPE, "vocab_size": 30, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
TASKS = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
FOLDERS = ("SUN397", "Cars", "RESISC45", "EuroSAT", "SVHN", "GTSRB", "MNIST", "DTD")


def clip() -> CLIPModel:
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(vision_config=SHAPE, text_config=TEXT, projection_dim=8)).eval()


def moved(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + torch.randn(tensor.shape, generator=generator) * 0.02 for name, tensor in tensors.items()}


def tower(seed: int | None = None) -> CLIPVisionModel:
    """The image encoder of `clip`, or a fine-tune of it."""
    full = clip()
    model = CLIPVisionModel(full.config.vision_config).eval()
    state = full.vision_model.state_dict()
    model.load_state_dict(state if seed is None else moved(state, seed))
    return model


def save_old(model: CLIPVisionModel, folder: Path) -> None:
    """As transformers 4 saved it: a prefix on every name, and a buffer."""
    tensors = {f"vision_model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    torch.save(tensors, folder / "pytorch_model.bin")


@pytest.fixture
def towers(tmp_path: Path) -> Path:
    """A full CLIP as the base, beside a tower in each layout."""
    clip().save_pretrained(tmp_path / "base")
    tower(1).save_pretrained(tmp_path / "new")
    save_old(tower(2), tmp_path / "old")
    return tmp_path


def folder(path: Path, **keys: Any) -> Any:
    return open_modelpool({"type": "folder", "path": str(path), **keys})


def test_a_full_clip_and_towers_of_both_layouts_are_one_pool(towers: Path) -> None:
    pool = folder(towers, part="vision")
    assert pool.alignment.names == tuple(sorted(tower().state_dict()))
    assert pool.base.folder == towers / "base"
    assert pool.base.config["model_type"] == "clip_vision_model"
    fused = fuse(TaskArithmetic(scaling_factor=0.3), pool)
    states = [tower(seed).state_dict() for seed in (None, 1, 2)]
    for name, start in states[0].items():
        expected = start + 0.3 * (states[1][name] + states[2][name] - 2 * start)
        torch.testing.assert_close(fused[name], expected, rtol=1e-6, atol=1e-7)


def test_what_is_written_is_a_tower_of_the_installed_version(towers: Path, tmp_path: Path) -> None:
    fused = fuse(SimpleAverage(), folder(towers, part="vision"))
    save(fused, tmp_path / "out")
    again, told = CLIPVisionModel.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert {key: list(value) for key, value in told.items() if value} == {}
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, (tower(1).state_dict()[name] + tower(2).state_dict()[name]) / 2)
    assert again.config.patch_size == 8


def test_a_full_base_under_towers_is_refused_with_the_way_out(towers: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        _ = folder(towers).alignment
    assert str(caught.value).startswith("new, old: a vision tower alone (model_type 'clip_vision_model'), over a base")
    assert "modelpool.part=vision" in str(caught.value)


def test_full_models_fuse_whole_without_a_part(tmp_path: Path) -> None:
    for name in ("base", "a"):
        clip().save_pretrained(tmp_path / name)
    assert "text_projection.weight" in folder(tmp_path).alignment.names
    assert "post_layernorm.bias" in folder(tmp_path, part="vision").alignment.names


def test_a_part_is_asked_of_models_that_have_it(pool: Path) -> None:
    with pytest.raises(CheckpointError, match=r"part=vision asks for a vision tower, and this model.*'t5'"):
        folder(pool, part="vision").models["a"]
    with pytest.raises(ConfigError, match=r"modelpool\.part=text"):
        folder(pool, part="text")


@pytest.mark.parametrize("layout", ["5", "4"])
@pytest.mark.parametrize("named", ["in the pool", "by the adapter"])
def test_adapters_on_towers_are_folded_over_a_full_clip(tmp_path: Path, layout: str, named: str) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file, save_file

    base = tmp_path / ("base" if named == "in the pool" else "elsewhere/full")
    clip().save_pretrained(base)
    expected = {}
    for seed, name in enumerate("xy"):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc1"], lora_dropout=0.1)
        adapted = get_peft_model(tower(), config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(tmp_path / name)
        expected[name] = PeftModel.from_pretrained(tower(), tmp_path / name).merge_and_unload().state_dict()
        if layout == "4":
            file = tmp_path / name / "adapter_model.safetensors"
            old = {
                k.replace("base_model.model.", "base_model.model.vision_model."): v for k, v in load_file(file).items()
            }
            assert old.keys().isdisjoint(load_file(file))
            save_file(old, file)
    pool = folder(tmp_path, part="vision")
    assert list(pool.models) == ["x", "y"]
    assert pool.alignment.names == tuple(sorted(tower().state_dict()))
    for name, state in expected.items():
        assert pool.models[name].base is pool.base
        for key, tensor in state.items():
            torch.testing.assert_close(pool.models[name][key], tensor, rtol=1e-6, atol=1e-6)
        changed = [key for key, tensor in state.items() if not torch.equal(tensor, tower().state_dict()[key])]
        assert len(changed) == 6


# OpenCLIP


def visual(seed: int) -> dict[str, torch.Tensor]:
    """A tower of 2 blocks, 64 wide, over 3 x 3 patches."""
    shapes = {
        "conv1.weight": (64, 3, 4, 4), "class_embedding": (64,), "positional_embedding": (10, 64), "proj": (64, 8),
        **{f"{norm}.{kind}": (64,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
    }  # fmt: skip
    for number in range(2):
        block = f"transformer.resblocks.{number}"
        shapes |= {f"{block}.attn.in_proj_weight": (192, 64), f"{block}.attn.in_proj_bias": (192,)}
        shapes |= {f"{block}.{part}": (64,) for part in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias")}
        shapes |= {f"{block}.attn.out_proj.weight": (64, 64), f"{block}.attn.out_proj.bias": (64,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (96, 64), f"{block}.mlp.c_fc.bias": (96,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (64, 96), f"{block}.mlp.c_proj.bias": (64,)}
    generator = torch.Generator().manual_seed(0)
    return moved({name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}, seed)


def nested(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A module whose state dict this is."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(leaf, nn.Parameter(tensor))
    return root


@pytest.fixture(params=["state dicts", "pickled modules"])
def task_vectors(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """The layout of the published task vectors; whether its files are whole modules."""
    whole = request.param == "pickled modules"
    code = ModuleType("src_of_task_vectors")
    code.ImageEncoder = type("ImageEncoder", (nn.Module,), {"__module__": "src_of_task_vectors"})  # type: ignore[attr-defined]
    if whole:
        sys.modules["src_of_task_vectors"] = code
    for seed, place in enumerate(("", *FOLDERS)):
        tensors = {f"model.visual.{name}": tensor for name, tensor in visual(seed).items()}
        tensors |= {"model.logit_scale": torch.ones(()), "model.token_embedding.weight": torch.ones(7, 8)}
        content: Any = tensors
        if whole:
            content = code.ImageEncoder()
            content.add_module("model", nested({k.removeprefix("model."): v for k, v in tensors.items()}))
        file = tmp_path / "ViT-B-32" / place / ("finetuned.pt" if place else "zeroshot.pt")
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, file)
    sys.modules.pop("src_of_task_vectors", None)
    return tmp_path, whole


def test_task_vectors_are_fused_in_their_own_names(task_vectors: tuple[Path, bool]) -> None:
    path, whole = task_vectors
    pool = open_modelpool({"type": "task_vectors", "path": str(path), "pickled_modules": whole})
    assert tuple(pool.models) == TASKS
    assert pool.alignment.names == tuple(sorted(visual(0)))
    assert pool.base is not None
    assert pool.base.identity["left_out"] == 2
    fused = fuse(TaskArithmetic(scaling_factor=0.3), pool)
    for name, start in visual(0).items():
        expected = start + 0.3 * sum(visual(seed)[name] - start for seed in range(1, 9))
        torch.testing.assert_close(fused[name], expected, rtol=1e-5, atol=1e-6)
    family = family_of(fused.config)
    assert isinstance(family, VisionTower)
    module = family.load(fused, torch.float32, CPU)
    assert family.features(module, torch.ones(2, 3, 12, 12)).shape == (2, 8)
    assert fused.config["hidden_act"] == "quick_gelu"


def test_a_fused_tower_is_written_and_read_again(task_vectors: tuple[Path, bool], tmp_path: Path) -> None:
    path, whole = task_vectors
    keys = {"type": "task_vectors", "path": str(path), "pickled_modules": whole, "select": ["dtd", "mnist"]}
    fused = fuse(SimpleAverage(), open_modelpool(keys))
    save(fused, tmp_path / "out")
    again = open_modelpool({"models": {"a": str(tmp_path / "out")}}).models["a"]
    family = family_of(again.config)
    assert isinstance(family, VisionTower)
    both = [family.features(family.load(c, torch.float32, CPU), torch.ones(2, 3, 12, 12)) for c in (fused, again)]
    assert torch.equal(*both)
    torch.testing.assert_close(again["proj"], (visual(8)["proj"] + visual(7)["proj"]) / 2)


def test_modules_are_read_only_where_the_pool_says_so(task_vectors: tuple[Path, bool]) -> None:
    path, whole = task_vectors
    pool = open_modelpool({"type": "task_vectors", "path": str(path)})
    if not whole:
        assert pool.alignment.names
        return
    with pytest.raises(CheckpointError, match=r"src_of_task_vectors\.ImageEncoder.*modelpool\.pickled_modules=true"):
        _ = pool.alignment


def test_an_attack_in_a_pool_does_not_run(task_vectors: tuple[Path, bool], tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path, _ = task_vectors
    model = nested({f"model.visual.{name}": tensor for name, tensor in visual(1).items()})
    model.preprocess = Attack()  # type: ignore[assignment]
    torch.save(model, path / "ViT-B-32" / "Cars" / "finetuned.pt")
    pool = open_modelpool({"type": "task_vectors", "path": str(path), "pickled_modules": True})
    with pytest.raises(CheckpointError, match=r"stanford-cars: .*names (posix|nt)\.system"):
        _ = pool.alignment
    assert not (tmp_path / "ran").exists()


def test_all_missing_files_are_told_at_once(task_vectors: tuple[Path, bool]) -> None:
    path, whole = task_vectors
    for place in ("Cars", "DTD"):
        (path / "ViT-B-32" / place / "finetuned.pt").unlink()
    keys = {"type": "task_vectors", "path": str(path), "pickled_modules": whole}
    with pytest.raises(CheckpointError) as caught:
        _ = open_modelpool(keys).alignment
    assert "stanford-cars: " in str(caught.value)
    assert "dtd: " in str(caught.value)
    assert open_modelpool({**keys, "select": ["svhn"]}).alignment.names
    with pytest.raises(ConfigError, match="'cars'"):
        open_modelpool({**keys, "select": ["cars"]})
    with pytest.raises(ConfigError, match=r"modelpool\.path=.*missing"):
        open_modelpool({**keys, "path": str(path / "nowhere")})


def test_towers_of_different_widths_do_not_fuse(task_vectors: tuple[Path, bool]) -> None:
    path, whole = task_vectors
    torch.save({**visual(1), "proj": torch.ones(64, 9)}, path / "ViT-B-32" / "DTD" / "finetuned.pt")
    with pytest.raises(AlignmentError, match=r"proj: \[64, 9\] instead of \[64, 8\] \[dtd\]"):
        _ = open_modelpool({"type": "task_vectors", "path": str(path), "pickled_modules": whole}).alignment


# The shipped configurations


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the folder of a model in a Hub cache of this test alone."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"

    def make(name: str) -> Path:
        repo = tmp_path / ("models--" + name.replace("/", "--"))
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
        place = repo / "snapshots" / commit
        place.mkdir(parents=True, exist_ok=True)
        return place

    return make


@pytest.mark.parametrize(
    ("file", "members"),
    [
        ("clip-vit-base-patch32_TA8", TASKS),
        ("clip-vit-base-patch16_TA8", TASKS),
        ("clip-vit-large-patch14_TA8", TASKS),
        ("clip-vit-base-patch32_robustness", ("stanford-cars", "eurosat", "resisc45", "gtsrb")),
    ],
)
def test_published_pools(file: str, members: tuple[str, ...], snapshot: Callable[[str], Path]) -> None:
    size = file.rpartition("_")[0]
    clip().save_pretrained(snapshot(f"openai/{size}"))
    for seed, name in enumerate(TASKS):
        tower(seed + 1).save_pretrained(snapshot(f"tanganke/{size}_{name}"))
    pool = open_modelpool(yaml.safe_load((CONFIGS / f"{file}.yaml").read_text()))
    assert tuple(pool.models) == members
    assert pool.base is not None
    name = "encoder.layers.1.mlp.fc2.weight"
    fused = fuse(SimpleAverage(), pool)
    expected = sum(tower(TASKS.index(member) + 1).state_dict()[name] for member in members) / len(members)
    torch.testing.assert_close(fused[name], expected, rtol=1e-6, atol=1e-7)


def test_other_published_names() -> None:
    lora = yaml.safe_load((CONFIGS / "clip-vit-base-patch16_TA8_lora16.yaml").read_text())["models"]
    assert [entry["path"] for name, entry in lora.items() if name != "_pretrained_"] == [
        f"tanganke/clip-vit-base-patch16_{task}_lora-16" for task in TASKS
    ]
    for model in ("ViT-B-32", "ViT-B-16", "ViT-L-14"):
        values = yaml.safe_load((CONFIGS / f"open-clip-{model.lower()}_TA8.yaml").read_text())
        assert (values["type"], values["model"], values["pickled_modules"]) == ("task_vectors", model, False)


def test_from_the_command_line(command: Callable[..., Any], task_vectors: tuple[Path, bool]) -> None:
    path, whole = task_vectors
    words = ["modelpool=open-clip-vit-b-32_TA8", f"modelpool.path={path}", f"modelpool.pickled_modules={whole}"]
    ran = command(*words, "modelpool.select=[svhn,dtd]", "method=task_arithmetic", "taskpool=dummy")
    assert ran.status == 0, ran.err
    assert f"'all_params': {sum(tensor.numel() for tensor in visual(0).values())}" in ran.out
