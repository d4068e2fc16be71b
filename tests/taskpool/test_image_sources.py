"""Where images come from, what their labels mean, and what is said when they cannot be had."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from fusion_bench.errors import ConfigError, DataError
from fusion_bench.taskpool import image_sources, image_tasks
from fusion_bench.taskpool.image_sets import ImageSet
from fusion_bench.taskpool.image_tasks import KNOWN, ImageTask, ImageTasks, canonical, published

DIGITS = [str(digit) for digit in range(10)]
COUNTS = {
    "sun397": 397, "stanford-cars": 196, "resisc45": 45, "eurosat": 10, "svhn": 10, "gtsrb": 43, "mnist": 10, "dtd": 47,
}  # fmt: skip


def encoded(pixels: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def table(labels: Sequence[int], names: Sequence[str] | None = None, column: str = "image") -> pa.Table:
    rows = [
        {column: {"bytes": encoded(np.full((4, 6), 10 * place, np.uint8)), "path": None}, "label": label}
        for place, label in enumerate(labels)
    ]
    made = pa.Table.from_pylist(rows)
    if names is None:
        return made
    features = {column: {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(place: Path, split: str = "test", part: str = "00000-of-00001", **how: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{split}-{part}.parquet"
    parquet.write_table(table(**{"labels": [3, 1, 2], "names": DIGITS, **how}), file)
    return file


def mnist(data_dir: Path | None = None, split: str = "test", **fields: Any) -> ImageSet:
    tasks = ImageTasks.from_plain({"MNIST": fields})
    return image_sources.open_images("mnist", tasks.specs["mnist"], "hub", str(data_dir) if data_dir else None, split)


def test_the_eight_tasks() -> None:
    assert tuple(COUNTS) == KNOWN
    for task, count in COUNTS.items():
        spec = published(task)
        assert spec.classes is not None
        assert (len(spec.classes), len(set(spec.classes)) > count - 2) == (count, True)
        assert all(name == name.strip() and name for name in spec.classes)
    sizes = {task: len(published(task).templates or ()) for task in KNOWN}
    assert list(sizes.values()) == [2, 8, 18, 3, 1, 3, 1, 8]
    assert (published("mnist").classes or ())[:2] == ("0", "1")
    assert "satellite view of the {c}." in (published("resisc45").templates or ())
    assert published("svhn").config == "cropped_digits"


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ("GRSRB", "gtsrb"), ("Cars", "stanford-cars"), ("stanford_cars", "stanford-cars"), ("RESISC45", "resisc45"),
        ("SUN397", "sun397"), ("EuroSAT", "eurosat"), ("DTD", "dtd"), ("flowers", "flowers"),
    ],
)  # fmt: skip
def test_spellings(given: str, task: str) -> None:
    assert canonical(given) == task
    assert ImageTasks.from_plain([given]) == (task,)


def test_a_known_task_keeps_what_is_not_given() -> None:
    tasks = ImageTasks.from_plain(
        {"svhn": {"templates": ["number {c}"]}, "new": {"data": "a/b", "classes": ["x", "y"]}}
    )
    assert tasks.specs["svhn"].templates == ("number {c}",)
    assert tasks.specs["svhn"].classes == tuple(DIGITS)
    assert tasks.specs["new"] == ImageTask(data="a/b", classes=("x", "y"))
    with pytest.raises(
        ConfigError, match=r"taskpool\.tasks\.svhn\.template'\. Did you mean 'taskpool\.tasks\.svhn\.temp"
    ):
        ImageTasks.from_plain({"svhn": {"template": ["{c}"]}})
    listed = ImageTasks.from_plain([{"name": "svhn", "templates": ["number {c}"]}, "mnist"])
    assert listed == ("svhn", "mnist")
    assert listed.specs["svhn"] == tasks.specs["svhn"]
    with pytest.raises(ConfigError, match=r"the entry {'split': 'train'} has no name"):
        ImageTasks.from_plain([{"split": "train"}])
    with pytest.raises(ConfigError, match="expected a list of names"):
        ImageTasks.from_plain("svhn")


def test_braces_in_class_names_are_text() -> None:
    assert image_tasks.prompts(["a {c}.", "{c} {c}"], "{c}x") == ["a {c}x.", "{c}x {c}x"]


def test_rows_come_in_file_order_as_colours(tmp_path: Path) -> None:
    write(tmp_path / "mnist" / "default", part="00001-of-00002", labels=[7])
    write(tmp_path / "mnist" / "default", part="00000-of-00002", labels=[3, 1])
    found = mnist(tmp_path)
    assert list(found.labels) == [3, 1, 7]
    assert found.classes == tuple(DIGITS)
    for place, value in ((2, 0), (1, 10), (0, 0)):
        image = found.decoded(found.stored([place])[0], place)
        assert (image.shape, image.dtype, image[0, 0].tolist()) == ((4, 6, 3), np.uint8, [value] * 3)
    assert set(found.origin.files or ()) == {f"test-0000{part}-of-00002.parquet" for part in (0, 1)}


def test_a_missing_shard_is_no_split(tmp_path: Path) -> None:
    write(tmp_path / "mnist" / "default", part="00001-of-00002")
    with pytest.raises(DataError, match=r"mnist: taskpool\.data_dir=.*no whole set of test-\*\.parquet"):
        mnist(tmp_path)


@pytest.mark.parametrize("place", ["mnist", "mnist/data", "mnist/default", "mnist/mnist", "ylecun/mnist"])
def test_layouts_below_a_folder(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / place)
    assert mnist(tmp_path).origin.source == "taskpool.data_dir"
    monkeypatch.setenv("FUSION_BENCH_DATA", str(tmp_path))
    assert mnist().origin.source == "FUSION_BENCH_DATA"
    assert mnist(data=str(tmp_path / place)).origin.path == str(tmp_path / place)


def test_configs_are_told_apart(tmp_path: Path) -> None:
    for config, label in (("full", 1), ("cropped", 2)):
        write(tmp_path / "mnist" / config, labels=[label])
    assert list(mnist(tmp_path, config="cropped").labels) == [2]
    with pytest.raises(DataError, match=r"holds the splits: test\."):
        mnist(tmp_path)


@pytest.mark.parametrize("repository", ["ylecun/mnist", "mnist"])
def test_hub_cache(tmp_path: Path, repository: str) -> None:
    import hashlib

    place = tmp_path / "hub" / f"datasets--{repository.replace('/', '--')}"
    commit = "0" * 39 + "1"
    folder = place / "snapshots" / commit / "mnist"
    file = write(tmp_path / "x")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "blobs").mkdir()
    folder.mkdir(parents=True)
    file.rename(place / "blobs" / digest)
    (folder / file.name).symlink_to(os.path.relpath(place / "blobs" / digest, folder))
    origin = mnist().origin
    assert (origin.source, origin.path, origin.commit) == ("hub cache", repository, commit)
    assert origin.files == {file.name: digest}


def test_cache_of_load_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "ylecun___mnist" / "mnist" / "0.0.0" / "abc"
    folder.mkdir(parents=True)
    rows = table([4, 5], DIGITS)
    with (
        pa.OSFile(str(folder / "mnist-test.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, rows.schema) as stream,
    ):
        stream.write_table(rows)
    found = mnist()
    assert (list(found.labels), found.origin.source, found.origin.commit) == ([4, 5], "datasets cache", "abc")
    assert found.decoded(found.stored([1])[0], 1)[0, 0, 0] == 10


def test_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_BENCH_DATA", str(tmp_path))
    with pytest.raises(DataError) as told:
        mnist()
    text = str(told.value)
    for part in (
        "mnist: no images of the split test found", "taskpool.data_dir: not set", "has no folder mnist",
        "no whole test split of ylecun/mnist", "no test split of mnist", "offline (HF_HUB_OFFLINE)",
        "hf download ylecun/mnist --repo-type dataset",
    ):  # fmt: skip
        assert part in text
    with pytest.raises(DataError, match=r"unknown task 'mnis'. Did you mean 'mnist'"):
        image_sources.open_images("mnis", ImageTask(), "hub", None, "test")


def test_labels_are_checked(tmp_path: Path) -> None:
    write(tmp_path / "a" / "mnist", labels=[0, -1, 12])
    with pytest.raises(DataError, match="the label of image 1 is -1, 2 labels are no class between 0 and 9"):
        mnist(tmp_path / "a")
    write(tmp_path / "b" / "mnist", labels=[0], names=None)
    with pytest.raises(DataError, match="carry no class names"):
        image_sources.open_images("mnist", ImageTask(), "hub", str(tmp_path / "b"), "test")
    assert mnist(tmp_path / "b").classes == tuple(DIGITS)
    write(tmp_path / "c" / "mnist", column="img")
    with pytest.raises(DataError, match=r"has no column image, only img, label\. Set taskpool\.tasks\.mnist\.image"):
        mnist(tmp_path / "c")
    assert len(mnist(tmp_path / "c", image="img")) == 3


def test_the_order_of_classes_is_checked(tmp_path: Path) -> None:
    write(tmp_path / "mnist", labels=[0, 1, 2], names=["Annual-Crop", "Forest", "Sea or lake"])
    same = mnist(tmp_path, classes=["annual crop", "forest", "sea"])
    assert same.classes == ("annual crop", "forest", "sea")
    with pytest.raises(DataError, match="number the classes in another order: 'Annual-Crop' is class 0 there, 1 of"):
        mnist(tmp_path, classes=["forest", "annual crop", "sea"])
    with pytest.raises(DataError, match=r"know 3 classes, .* 10"):
        mnist(tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = write(tmp_path / "mnist")
    rows = parquet.read_table(file).to_pylist()
    rows[1]["image"]["bytes"] = b"no image"
    rows[2]["image"]["bytes"] = None
    parquet.write_table(pa.Table.from_pylist(rows), file)
    found = mnist(tmp_path)
    with pytest.raises(DataError, match=r"image 1 of .* cannot be decoded"):
        found.decoded(found.stored([1])[0], 1)
    with pytest.raises(DataError, match=r"image 2 of .* is no encoded image"):
        found.decoded(found.stored([2])[0], 2)
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot be read.*Fetch the file again"):
        mnist(tmp_path)


def test_turned_photographs_are_turned(tmp_path: Path) -> None:
    file = write(tmp_path / "mnist", labels=[0])
    rows = parquet.read_table(file).to_pylist()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255
    rows[0]["image"]["bytes"] = encoded(pixels, "PNG", exif=exif)
    parquet.write_table(pa.Table.from_pylist(rows), file)
    found = mnist(tmp_path)
    image = found.decoded(found.stored([0])[0], 0)
    assert (image.shape, image[:4].min(), image[4:].max()) == ((8, 4, 3), 255, 0)


def test_generated_tasks() -> None:
    for task in image_sources.generated_tasks()[:2]:
        found = image_sources.open_images(task, ImageTask(), "mini", None, "test")
        image = found.decoded(found.stored([5])[0], 5)
        assert (image.ndim, image.dtype, image.shape[2]) == (3, np.uint8, 3)
        assert (found.origin.source, found.origin.split) == ("generated", "test")
        assert all("{c}" in template for template in image_sources.generated_templates(task))
    with pytest.raises(DataError, match=r"unknown split 'tset'. Did you mean 'test'"):
        image_sources.open_images("shapes", ImageTask(), "mini", None, "tset")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("mnist", 2500, (28, 28, 3)), ("usps", 2007, (16, 16, 3)), ("fashion_mnist", 2500, (28, 28, 3)),
        ("cifar10_jpeg", 2500, (32, 32, 3)),
    ],
)  # fmt: skip
def test_real_images(name: str, count: int, shape: tuple[int, ...]) -> None:
    places = [os.environ.get("FUSION_BENCH_DATA"), Path(__file__).parents[3] / "shared" / "data"]
    root = next((place for place in places if place and (Path(place) / name).is_dir()), None)
    if root is None:
        pytest.skip(f"no {name}: neither FUSION_BENCH_DATA nor ../shared/data holds it")
    tasks = ImageTasks.from_plain([name])
    found = image_sources.open_images(name, tasks.specs[name], "hub", str(root), "test")
    assert (len(found), len(found.classes), set(found.labels)) == (count, 10, set(range(10)))
    assert {found.decoded(found.stored([place])[0], place).shape for place in range(0, count, 500)} == {shape}
    if name == "mnist":
        # Digits are bright on black: the middle is brighter than the rim.
        images = np.stack([found.decoded(found.stored([place])[0], place)[:, :, 0] for place in range(50)])
        assert images[:, 8:20, 8:20].mean() > 5 * max(1.0, float(images[:, :3].mean()))
