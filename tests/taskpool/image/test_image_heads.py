"""Heads from text towers, from files, of the models themselves."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pyarrow import parquet
from transformers import CLIPModel

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.errors import CheckpointError, ConfigError, DataError
from fusion_bench.settings import Settings
from fusion_bench.taskpool.image_classification import ImageClassification

ONE = Settings(device="cpu", threads=1)
CLASSES = ("red square", "green disc", "blue stripe", "grey field")
TEMPLATES = ("a photo of a {c}.", "my {c}!")
SIDE = 16
Open = Callable[..., ImageClassification]
MakeClip = Callable[..., None]
Read = Callable[[Path], list[int]]
Plain = Callable[..., list[int]]


def test_heads_are_kept_by_what_decides_them(
    images: Open, tower: Checkpoint, tmp_path: Path, make_clip: MakeClip
) -> None:
    def heads() -> set[str]:
        return {file.name for file in (tmp_path / "cache" / "heads").glob("*.safetensors")}

    images().evaluate(tower, settings=ONE)
    [first] = heads()  # both tasks have the same classes and prompts
    file = tmp_path / "cache" / "heads" / first
    before = file.stat().st_mtime_ns
    images().evaluate(tower, settings=ONE)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(b"cut off")
    assert images().evaluate(tower, settings=ONE)["forms"]["n"] == 20
    images(tasks={"forms": {"templates": ["{c}"]}}).evaluate(tower, settings=ONE)
    assert len(heads()) == 2
    other = tmp_path / "other"
    make_clip(other, seed=5)
    images(clip=str(other)).evaluate(tower, settings=ONE)
    assert len(heads()) == 3


def test_published_heads(images: Open, tower: Checkpoint, tmp_path: Path, outputs: Read) -> None:
    from safetensors.torch import save_file

    made = images()
    made.evaluate(tower, settings=ONE, predictions=tmp_path / "text")
    weight = made._session.text_heads(made._clip([])).head(CLASSES, TEMPLATES, projected=True).weight
    save_file({"weight": (weight * 20).contiguous()}, tmp_path / "head_Forms.safetensors")
    torch.save({"weight": weight * 20, "bias": torch.zeros(4)}, tmp_path / "head_coloursVal.pt")
    found = images(heads=str(tmp_path))
    found.check([])
    found.evaluate(tower, settings=ONE, predictions=tmp_path / "file")
    for task in found.tasks:
        assert outputs(tmp_path / "file" / f"{task}.jsonl") == outputs(tmp_path / "text" / f"{task}.jsonl")
    torch.save({"weight": weight[:3]}, tmp_path / "head_coloursVal.pt")
    report = images(heads=str(tmp_path)).evaluate(tower, settings=ONE)
    assert "is a head of 3 classes, the task has 4" in report["colours"]["error"]
    assert report["average_of"] == ["forms"]
    (tmp_path / "head_Forms.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=r"no head_<task>\.safetensors or \.pt for 'forms'. Heads there: head_coloursV"
    ):
        images(heads=str(tmp_path)).check([])


def test_whole_pickled_heads_need_a_word(images: Open, tower: Checkpoint, tmp_path: Path) -> None:
    head = torch.nn.Linear(10, 4)
    torch.save(head, tmp_path / "head_forms.pt")
    made = images(heads=str(tmp_path), select=["forms"])
    assert "taskpool.pickled_modules=true" in made.evaluate(tower, settings=ONE)["forms"]["error"]
    report = images(heads=str(tmp_path), select=["forms"], pickled_modules=True).evaluate(tower, settings=ONE)
    assert report["forms"]["n"] == 20


def test_models_with_their_own_heads(images: Open, folder: Path, tmp_path: Path, outputs: Read) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    from fusion_bench.checkpoint.with_head import Headless
    from fusion_bench.family import family_of

    shape = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    whole = {}
    for seed, task in enumerate(("colours", "forms")):
        torch.manual_seed(seed)
        model = ViTForImageClassification(ViTConfig(**shape, image_size=SIDE, patch_size=8, num_labels=4)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(tmp_path / task)
        ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path / task)
        whole[task] = open_checkpoint(tmp_path / task)
    bodies = {
        task: Headless(model, family_of(model.config).head_names(model.config, model.infos))
        for task, model in whole.items()
    }
    heads = {task: body.head for task, body in bodies.items()}
    made = images(head="own", clip=None)
    made.check([tmp_path / "forms"])
    made.check_model(whole["forms"].config)
    how: Any = {"settings": ONE, "tokenizers": [tmp_path / "forms"]}
    how["settings"] = Settings(device="cpu", threads=4, batch_size=1)
    report = made.evaluate(bodies["forms"], **how, heads=heads, predictions=tmp_path / "p")
    # What the module bore is back: the next model goes into the same places.
    again = images(head="own", clip=None, cache=False)
    object.__setattr__(again, "_session", made._session)
    assert again.evaluate(bodies["colours"], **how, heads=heads)["average"] is not None
    assert again.evaluate(bodies["forms"], **how, heads=heads)["average"] == report["average"]
    processor = ViTImageProcessorPil.from_pretrained(tmp_path / "forms")
    for task in made.tasks:
        rows = parquet.read_table(folder / task / "default" / "test-00000-of-00001.parquet").column("image").to_pylist()
        model = ViTForImageClassification.from_pretrained(tmp_path / "forms").eval()
        model.classifier = ViTForImageClassification.from_pretrained(tmp_path / task).classifier
        with torch.no_grad():
            found = [
                int(
                    model(
                        **processor(Image.open(io.BytesIO(row["bytes"])).convert("RGB"), return_tensors="pt")
                    ).logits.argmax()
                )
                for row in rows
            ]
        assert outputs(tmp_path / "p" / f"{task}.jsonl") == found
    assert report["average"] is not None
    assert made.evaluate(whole["forms"], **how, only=["forms"])["forms"]["accuracy"] == report["forms"]["accuracy"]
    with pytest.raises(CheckpointError, match="has no classification head"):
        made.evaluate(bodies["forms"], **how)
    report = made.evaluate(bodies["forms"], **how, heads={"forms": heads["forms"]})
    assert "colours: no model of the pool has this name" in report["colours"]["error"]
    assert report["average_of"] == ["forms"]
    with pytest.raises(CheckpointError, match=r"scored with taskpool\.head=own"):
        images().check_model(whole["forms"].config)
    # A module that bears one task's head is read under each task's own.
    module: Any = family_of(whole["forms"].config).load(whole["forms"], torch.float32, torch.device("cpu"))
    fitted = made.fitting_data("train", made.tasks, "disjoint", reference=whole["forms"], **how, heads=heads)
    batch = fitted["colours"].collate(range(5))
    with torch.no_grad():
        hidden = module.vit(batch.inputs["pixel_values"]).last_hidden_state[:, 0]
        for task, data in fitted.items():
            expected = hidden @ heads[task]["classifier.weight"].T + heads[task]["classifier.bias"]
            torch.testing.assert_close(data.logits(module, batch), expected, rtol=1e-4, atol=1e-4)
    module.requires_grad_(True)
    fitted["colours"].gold_log_prob(module, batch).sum().backward()
    assert module.vit.embeddings.cls_token.grad.abs().sum() > 0
    assert module.classifier.weight.grad is None
    plain = made.fitting_data("train", ["forms"], "disjoint", reference=whole["forms"], **how)["forms"]
    torch.testing.assert_close(plain.logits(module, batch), fitted["forms"].logits(module, batch))
    assert len({plain.digest, *(data.digest for data in fitted.values())}) == 3


def test_a_head_that_numbers_its_classes_otherwise(images: Open) -> None:
    from fusion_bench.taskpool.image_outputs import own_outputs

    config = {"model_type": "vit", "id2label": {"0": "green disc", "1": "red-square"}}
    with pytest.raises(
        DataError, match=r"id2label\) number the classes in another order: 'green disc' is class 0 there"
    ):
        own_outputs(config, "forms", ("red square", "green disc"))
    own_outputs({**config, "id2label": {0: "Red Square", 1: "green_disc"}}, "forms", ("red square", "green disc"))
    own_outputs({**config, "id2label": {0: "LABEL_0", 1: "LABEL_1"}}, "forms", ("red square", "green disc"))


def test_towers_whose_features_are_projected_already(
    images: Open, folder: Path, tmp_path: Path, make_clip: MakeClip, outputs: Read, plain_predictions: Plain
) -> None:
    from fusion_bench.checkpoint.memory import MemoryCheckpoint
    from fusion_bench.family.open_clip import MODEL_TYPE

    make_clip(tmp_path / "clip", seed=2, width=64)
    model: Any = CLIPModel.from_pretrained(tmp_path / "clip")
    tower, found = model.vision_model, {}
    found["conv1.weight"] = tower.embeddings.patch_embedding.weight
    found["class_embedding"] = tower.embeddings.class_embedding
    found["positional_embedding"] = tower.embeddings.position_embedding.weight
    found["proj"] = model.visual_projection.weight.T
    parts = {"ln_pre": tower.pre_layrnorm, "ln_post": tower.post_layernorm}
    for number, layer in enumerate(tower.encoder.layers):
        block, attention = f"transformer.resblocks.{number}", layer.self_attn
        for kind in ("weight", "bias"):
            three = [getattr(part, kind) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
            found[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
        parts |= {f"{block}.attn.out_proj": attention.out_proj, f"{block}.mlp.c_fc": layer.mlp.fc1}
        parts |= {f"{block}.mlp.c_proj": layer.mlp.fc2, f"{block}.ln_1": layer.layer_norm1}
        parts |= {f"{block}.ln_2": layer.layer_norm2}
    found |= {f"{name}.{kind}": getattr(part, kind) for name, part in parts.items() for kind in ("weight", "bias")}
    tensors = {name: tensor.detach().clone() for name, tensor in found.items()}
    checkpoint = MemoryCheckpoint(tensors, config={"model_type": MODEL_TYPE, "hidden_act": "quick_gelu"})
    made = images(clip=str(tmp_path / "clip"))
    made.evaluate(checkpoint, settings=ONE, predictions=tmp_path / "p")
    for task in made.tasks:
        expected = plain_predictions(tmp_path / "clip", folder / task / "default" / "test-00000-of-00001.parquet")
        assert outputs(tmp_path / "p" / f"{task}.jsonl") == expected
        assert len(set(expected)) > 1
