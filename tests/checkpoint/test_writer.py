"""Writing model folders: values, layout, companions, and nothing left behind by faults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.manifest import MANIFEST
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.checkpoint.open import open_checkpoint
from fusion_bench.checkpoint.output import check_writable
from fusion_bench.checkpoint.views import WithAliases
from fusion_bench.checkpoint.writer import save
from fusion_bench.errors import ConfigError, OutputError

KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8, torch.bool]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.text('abc.é"\\ _0', min_size=1, max_size=12), max_size=8, unique=True))
    tensors = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 6), max_size=3))
        dtype = draw(st.sampled_from(KINDS))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 100)))
        values = torch.randint(-100, 100, shape, generator=generator)
        tensors[name] = values.to(dtype)
    return tensors


@settings(max_examples=80, deadline=None)
@given(
    tensors=state_dicts(),
    shard_bytes=st.none() | st.integers(1, 300),
    block=st.integers(1, 50),
    threads=st.integers(1, 3),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, torch.Tensor],
    shard_bytes: int | None,
    block: int,
    threads: int,
) -> None:
    out = tmp_path_factory.mktemp("trip") / "out"
    save(MemoryCheckpoint(tensors), out, shard_bytes=shard_bytes, block=block, threads=threads)
    reread: dict[str, torch.Tensor] = {}
    for path in sorted(out.glob("*.safetensors")):
        reread |= load_file(path)
    ours = open_checkpoint(out)
    assert set(reread) == set(ours) == set(tensors)
    for name, tensor in tensors.items():
        for found in (reread[name], ours[name]):
            assert found.dtype == tensor.dtype
            assert found.shape == tensor.shape
            assert torch.equal(bits(found), bits(tensor))


def test_bytes_do_not_depend_on_threads_or_blocks(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(i, 7).to(KINDS[i % 4]) for i in range(20)}
    for at, (threads, block) in enumerate(((1, 10**6), (3, 5), (2, 64))):
        save(MemoryCheckpoint(tensors), tmp_path / str(at), threads=threads, block=block)
    first, *others = ((tmp_path / str(at) / "model.safetensors").read_bytes() for at in range(3))
    assert all(other == first for other in others)


def test_layout_is_the_one_others_expect(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(3).bfloat16(),
        "b": torch.ones(3),
        "c": torch.ones(5, dtype=torch.int8),
        "d": torch.ones(2).double(),
    }
    save(MemoryCheckpoint(tensors), tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0


def test_shards_and_index(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(7)} | {"big": torch.ones(100)}
    save(MemoryCheckpoint(tensors), tmp_path, shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 7 * 40 + 400
    assert set(index["weight_map"]) == set(tensors)
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    for shard in shards:
        content = load_file(tmp_path / shard)
        assert set(content) == {name for name, file in index["weight_map"].items() if file == shard}
        assert sum(t.nbytes for t in content.values()) <= 100 or list(content) == ["big"]
    with pytest.raises(ConfigError, match="above zero"):
        save(MemoryCheckpoint(tensors), tmp_path / "other", shard_bytes=0)
    assert not (tmp_path / "other").exists()


def test_dtype_casts_floating_tensors_alone(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(50), "n": torch.arange(3)}
    config = {"model_type": "x", "torch_dtype": "float32", "text_config": {"dtype": "float32"}}
    save(MemoryCheckpoint(tensors, config=config), tmp_path, dtype="bfloat16", block=7)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["w"], tensors["w"].bfloat16())
    assert torch.equal(found["n"], tensors["n"])
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"], written["text_config"]["dtype"]) == ("bfloat16",) * 3


def test_aliases_are_written_once(tmp_path: Path) -> None:
    shared = torch.randn(4, 2)
    save(MemoryCheckpoint({"shared": shared, "head": shared}), tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"shared"}


def test_companions(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_file({"x": torch.ones(2)}, source / "model.safetensors")
    copied = [
        "tokenizer.json", "tokenizer_config.json", "spiece.model", "merges.txt", "vocab.json", "generation_config.json",
        "special_tokens_map.json", "chat_template.jinja", "added_tokens.json", "preprocessor_config.json",
    ]  # fmt: skip
    for name in [*copied, "optimizer.pt", "README.md", "trainer_state.json"]:
        (source / name).write_text(name)
    save(
        open_checkpoint(source),
        tmp_path / "out",
        card="# Fused\n",
        extra_files={"a.txt": "1", "b": b"2", "c": source / "README.md"},
    )
    out = tmp_path / "out"
    assert names_in(out) == {*copied, "model.safetensors", "README.md", "a.txt", "b", "c", MANIFEST}
    assert all((out / name).read_text() == name for name in copied)
    assert (out / "README.md").read_text() == "# Fused\n"
    assert [(out / name).read_text() for name in ("a.txt", "b", "c")] == ["1", "2", "README.md"]
    for name in ("../evil", ".partial", MANIFEST):
        with pytest.raises(OutputError, match="no name for a file"):
            save(open_checkpoint(source), tmp_path / "bad", extra_files={name: "x"})
    assert not (tmp_path / "bad").exists()
    assert not (tmp_path / "evil").exists()


# Configs


@pytest.mark.parametrize("architecture", ["t5", "gpt2", "bert"])
def test_transformers_loads_what_was_written(tmp_path: Path, architectures: Any, architecture: str) -> None:
    model = architectures[architecture]()
    save(MemoryCheckpoint.of_module(model), tmp_path, shard_bytes=20_000, threads=2)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("new", [True, False])
def test_untied_heads_are_declared_and_survive(tmp_path: Path, architectures: Any, new: bool) -> None:
    model = architectures["t5"]()
    head = torch.randn(64, 32)
    model.save_pretrained(tmp_path / "base")
    tied = WithAliases(open_checkpoint(tmp_path / "base"), MemoryCheckpoint.of_module(model).aliases)
    save(tied, tmp_path / "tied")
    assert json.loads((tmp_path / "tied" / "config.json").read_text())["tie_word_embeddings"] is True
    config = model.config.to_dict()
    assert config["tie_word_embeddings"] is True
    if not new:
        # Configs of transformers 4 say nothing of scaling: tied meant scaled.
        del config["scale_decoder_outputs"]
    untied = MemoryCheckpoint(model.state_dict() | {"lm_head.weight": head}, config=config)
    save(untied, tmp_path / "untied")
    assert json.loads((tmp_path / "untied" / "config.json").read_text())["tie_word_embeddings"] is False
    loaded = type(model).from_pretrained(tmp_path / "untied")
    assert torch.equal(loaded.lm_head.weight, head)
    assert torch.equal(loaded.shared.weight, model.shared.weight)
    tokens = torch.tensor([[5, 6, 7]])
    model.lm_head.weight = torch.nn.Parameter(head)
    out, expected = (m(input_ids=tokens, decoder_input_ids=tokens).logits for m in (loaded, model))
    torch.testing.assert_close(out, expected)


def test_overrides_win(tmp_path: Path) -> None:
    save(
        MemoryCheckpoint({"x": torch.ones(2)}, config={"a": 1, "b": 2}),
        tmp_path,
        config_overrides={"b": 3, "dtype": "z"},
    )
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1, "b": 3, "dtype": "z"}


# Where it may write


def test_foreign_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for call in (check_writable, lambda out: save(MemoryCheckpoint({"x": torch.ones(2)}), out)):
        with pytest.raises(OutputError, match=r"thesis\.tex"):
            call(tmp_path)
    assert names_in(tmp_path) == {"thesis.tex"}


def test_overwriting_keeps_other_files_but_no_other_weights(tmp_path: Path) -> None:
    for name in ("thesis.tex", "pytorch_model.bin", "model.safetensors.index.json", "adapter_config.json"):
        (tmp_path / name).write_text("x")
    save(MemoryCheckpoint({"x": torch.ones(2)}), tmp_path, overwrite=True)
    assert names_in(tmp_path) == {"thesis.tex", "model.safetensors", MANIFEST}
    assert list(open_checkpoint(tmp_path)) == ["x"]


def test_own_outputs_are_replaced_without_leftovers(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.ones(10) for i in range(5)}
    save(MemoryCheckpoint(tensors, config={"a": 1}), tmp_path, shard_bytes=50, extra_files={"old.txt": ""})
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    save(MemoryCheckpoint({"x": torch.zeros(3)}), tmp_path, overwrite=True)
    assert names_in(tmp_path) == {"model.safetensors", MANIFEST}
    save(MemoryCheckpoint(tensors), tmp_path, shard_bytes=50, overwrite=True)
    assert set(open_checkpoint(tmp_path)) == set(tensors)


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="is a file"):
            check_writable(out)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):
        with pytest.raises(OutputError, match="no permission"):
            check_writable(locked / "deep" / "out")
    check_writable(tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_disk_space_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OutputError, match=r"needs 0\.02 GB, the disk has 0\.00 GB"):
        save(MemoryCheckpoint({"x": torch.ones(2)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    from contextlib import contextmanager

    from fusion_bench.progress import Progress

    class Counting(Progress):
        done = 0.0
        total = 0.0

        @contextmanager
        def bar(self, what: str, total: float, unit: str = "") -> Any:
            assert (what, unit) == ("writing", "B")
            self.total = total

            def advance(amount: float) -> None:
                self.done += amount

            yield advance

    progress = Counting()
    save(
        MemoryCheckpoint({"x": torch.ones(1000), "n": torch.arange(3)}),
        tmp_path,
        dtype="float16",
        progress=progress,
        block=64,
    )
    assert progress.done == progress.total == 2024


def test_writing_is_a_checkpoint_of_checkpoints(tmp_path: Path) -> None:
    """What was written can be opened and written again, byte for byte."""
    source: Checkpoint = MemoryCheckpoint({"x": torch.randn(30), "y": torch.randn(3, 3).bfloat16()}, config={"a": 1})
    save(source, tmp_path / "one")
    save(open_checkpoint(tmp_path / "one"), tmp_path / "two", block=4)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
