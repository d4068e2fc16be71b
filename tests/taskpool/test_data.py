"""Where examples come from, which of them are taken, and what is said when they cannot be had."""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from fusion_bench.errors import DataError
from fusion_bench.taskpool import examples, glue_data, templates

Write = Callable[..., Path]


def test_a_folder_that_is_given_is_the_only_one(
    data_dir: Path, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_BENCH_DATA", str(data_dir))
    found = examples.read("cola", "glue")
    assert found.origin.source == "FUSION_BENCH_DATA"
    assert found.origin.path == str(data_dir / "glue" / "cola")
    assert found.ids == tuple(range(100, 107))
    other = tmp_path / "other"
    write(other, "cola", [{"sentence": "x", "label": 0}])
    assert examples.read("cola", "glue", data_dir=str(other)).origin.source == "taskpool.data_dir"
    with pytest.raises(DataError, match=r"rte: taskpool\.data_dir=.*other has no"):
        examples.read("rte", "glue", data_dir=str(other))


def test_the_report_can_tell_which_file_it_was(data_dir: Path) -> None:
    import hashlib

    [file] = (data_dir / "glue" / "mnli").iterdir()
    origin = examples.read("mnli", "glue", data_dir=str(data_dir)).origin.as_dict()
    assert origin["split"] == "validation_matched"
    assert origin["files"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    assert "commit" not in origin


def test_shards_are_read_in_order(tmp_path: Path, write: Write) -> None:
    for part in (1, 0):
        file = write(tmp_path, "sst2", [{"sentence": f"part {part}", "label": 0}])
        file.rename(file.with_name(f"validation-0000{part}-of-00002.parquet"))
    found = examples.read("sst2", "glue", data_dir=str(tmp_path))
    assert [part in text.prompt for part, text in zip(("part 0", "part 1"), found.texts, strict=True)] == [True, True]


@pytest.mark.parametrize("repository", ["nyu-mll/glue", "glue"])
def test_hub_cache(tmp_path: Path, write: Write, repository: str) -> None:
    place = tmp_path / "hub" / f"datasets--{repository.replace('/', '--')}"
    commit = "0" * 39 + "1"
    snapshot = place / "snapshots" / commit
    file = write(tmp_path / "x", "rte", [{"sentence1": "a", "sentence2": "b", "label": 1}])
    (snapshot / "rte").mkdir(parents=True)
    file.rename(snapshot / "rte" / file.name)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    origin = examples.read("rte", "glue").origin
    assert (origin.source, origin.path, origin.commit) == ("hub cache", repository, commit)


def test_cache_of_load_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "nyu-mll___glue" / "rte" / "0.0.0" / "abc123"
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist([{"sentence1": "a", "sentence2": "b", "label": 0, "idx": 5}])
    for split in ("validation", "train"):
        with (
            pa.OSFile(str(folder / f"glue-{split}.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as stream,
        ):
            stream.write_table(table)
    found = examples.read("rte", "glue")
    assert (found.ids, found.origin.source, found.origin.commit) == ((5,), "datasets cache", "abc123")
    assert list(found.origin.files or ()) == ["glue-validation.arrow"]


def test_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    images.mkdir()
    monkeypatch.setenv("FUSION_BENCH_DATA", str(images))
    with pytest.raises(DataError) as caught:
        examples.read("qqp", "glue")
    said = str(caught.value)
    for part in (
        "qqp",
        str(images),
        str(tmp_path / "hub"),
        str(tmp_path / "datasets"),
        "offline",
        "hf download nyu-mll/glue",
    ):
        assert part in said


def test_the_folder_of_the_tasks_themselves_is_explained(data_dir: Path) -> None:
    with pytest.raises(DataError, match="give the folder that holds glue/"):
        examples.read("cola", "glue", data_dir=str(data_dir / "glue"))
    with pytest.raises(DataError, match="holds the splits: validation_matched"):
        examples.read("mnli", "glue", data_dir=str(data_dir), split="validation_mismatched")


def test_bad_files(tmp_path: Path, write: Write) -> None:
    file = write(tmp_path, "cola", [{"sentence": "x", "label": 0}])
    file.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot be read"):
        examples.read("cola", "glue", data_dir=str(tmp_path))
    parquet.write_table(pa.table({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), file)
    with pytest.raises(DataError, match="hold no example"):
        examples.read("cola", "glue", data_dir=str(tmp_path))
    write(tmp_path, "cola", [{"text": "x", "label": 0}])
    with pytest.raises(DataError, match=r"no column 'sentence'.*Example 100"):
        examples.read("cola", "glue", data_dir=str(tmp_path))


def test_the_unlabelled_test_split(tmp_path: Path, write: Write) -> None:
    write(tmp_path, "cola", [{"sentence": "x", "label": 1}, {"sentence": "x", "label": -1}], split="test")
    with pytest.raises(DataError, match=r"label -1.*Example 101 of .*split test"):
        examples.read("cola", "glue", data_dir=str(tmp_path), split="test")


def test_a_limit_takes_the_same_examples_every_time(data_dir: Path) -> None:
    def ids(limit: int | None) -> tuple[Any, ...]:
        return examples.read("cola", "glue", data_dir=str(data_dir), limit=limit).ids

    assert ids(None) == tuple(range(100, 107))
    assert ids(3) == ids(3) == ids(5)[:3] == ids(99)[:3]
    assert sorted(ids(99)) == list(ids(None))
    assert examples.shuffled("cola", 1043)[:5] == [88, 121, 131, 181, 224]
    assert examples.shuffled("cola", 50) != examples.shuffled("rte", 50)


def test_generated_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("fusion_bench.zoo.text.tasks")
    asked: list[tuple[str, str]] = []

    def load(task: str, split: str) -> list[dict[str, Any]]:
        if split not in ("train", "validation", "test"):
            raise ValueError(f"unknown split {split!r}")
        asked.append((task, split))
        return [{"sentence": split, "label": 1, "idx": 0}]

    module.load = load  # type: ignore[attr-defined]
    module.VERSION = "7"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fusion_bench.zoo.text.tasks", module)
    found = examples.read("cola", "mini_t5")
    examples.read("cola", "mini_t5", split="validation")
    assert asked == [("cola", "test"), ("cola", "validation")]
    assert found.origin.as_dict() == {"source": "generated", "path": module.__name__, "split": "test", "version": "7"}
    with pytest.raises(DataError, match="cola: unknown split 'dev'"):
        examples.read("cola", "mini_t5", split="dev")


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "n", "word", "count"),
    [
        ("cola", 1043, "acceptable", 721),
        ("mrpc", 408, "yes", 279),
        ("qnli", 5463, "no", 2761),
        ("rte", 277, "yes", 146),
        ("sst2", 872, "positive", 444),
        ("stsb", 1500, None, None),
        ("mnli", None, None, None),
        ("qqp", None, None, None),
    ],
)
def test_real_validation_splits(real_data: Path, task: str, n: int | None, word: str | None, count: int | None) -> None:
    found = examples.read(task, "glue", data_dir=str(real_data))
    assert n is None or len(found) == n
    targets = Counter(text.target for text in found.texts)
    if word is not None:
        assert targets.most_common(1) == [(word, count)]
    words = templates.template(task).targets
    assert words is None or targets.keys() == set(words)
    assert not any("{" in text.prompt.split("'")[0] for text in found.texts)


def test_split_names() -> None:
    assert glue_data.split_name("mnli", None) == "validation_matched"
    assert glue_data.split_name("mnli", "validation") == "validation_matched"
    assert glue_data.split_name("mnli", "validation_mismatched") == "validation_mismatched"
    assert glue_data.split_name("cola", None) == "validation"
