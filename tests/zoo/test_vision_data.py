"""The image sets: frozen bytes, disjoint splits, balanced classes, no torch."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from fusion_bench.errors import DataError
from fusion_bench.zoo import vision
from fusion_bench.zoo.vision import canvas, corpus, tasks

SPLITS = ("train", "validation", "test")
# Of train, validation, test. A change here is a new VERSION of the suite.
DIGESTS = {
    "counting": ("e463ee7a7fcc496e", "2902b0c0d5153ddd", "9d6b06d8cbf300b8"),
    "digits": ("6d82a23b0dbee0a0", "f68792e0855c6dd7", "5740807697d4d1ab"),
    "letters": ("a0c7752eb3a9bcff", "885aa86b00b75f0e", "a88acdd7d2923fd8"),
    "orientation": ("02c438b8a4185a15", "b60f3d6a52933441", "734643de89abc424"),
    "shapes": ("5f3b6173fc3c470b", "8bee9078d0883df2", "cd15b15edcc6f9b0"),
    "signs": ("c3141ccfe42ac005", "d2ec62ea85b06fc6", "9880c9808c33de80"),
    "terrain": ("1a94c0c2b7674d9b", "d9c5f9e476f01362", "13dfb83d9a5cce78"),
    "textures": ("98aff7d5545c4dca", "c466756d115c6a64", "029f4e3e1e833c65"),
}


def _digest(images: vision.ImageSet) -> str:
    return hashlib.sha256(images.images.tobytes() + images.labels.astype("<i8").tobytes()).hexdigest()[:16]


def _contents(task: str, split: str) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in vision.load(task, split).images]


def test_eight_tasks_with_words_and_prompts() -> None:
    assert len(vision.TASKS) == 8
    assert vision.VERSION == 1
    for task in vision.TASKS:
        names = vision.classes(task)
        assert 4 <= len(names) <= 20
        assert len(set(names)) == len(names)
        assert all(template.count("{c}") == 1 for template in vision.templates(task))


@pytest.mark.parametrize("task", vision.TASKS)
def test_splits_are_frozen(task: str) -> None:
    assert tuple(_digest(vision.load(task, split)) for split in SPLITS) == DIGESTS[task]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", vision.TASKS)
def test_shapes_types_and_balance(task: str, split: str) -> None:
    images = vision.load(task, split)
    assert len(images) == vision.SIZES[split] >= 600
    assert images.images.shape == (len(images), 32, 32, 3)
    assert (images.images.dtype, images.labels.dtype) == (np.uint8, np.int64)
    counts = np.bincount(images.labels, minlength=len(vision.classes(task)))
    assert len(counts) == len(vision.classes(task))
    if task == "digits":
        assert counts.min() > 0.7 * counts.mean()
    else:
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("task", vision.TASKS)
def test_splits_share_no_image_and_repeat_none(task: str) -> None:
    contents = {split: _contents(task, split) for split in SPLITS}
    assert len({content for split in SPLITS for content in contents[split]}) == sum(vision.SIZES.values())


def test_handwritten_digits_are_those_of_scikit_learn() -> None:
    """Held-out images are enlarged originals; the rest of the originals stands in train."""
    from sklearn.datasets import load_digits

    def grey(split: str) -> set[bytes]:
        return {image.tobytes() for image in vision.load("digits", split).images[..., 0]}

    data = load_digits()
    enlarged = {_enlarged(image) for image in data.images / 16.0}
    held = grey("validation") | grey("test")
    assert len(enlarged) == len(data.images)
    assert held < enlarged
    assert enlarged - held < grey("train")


def _enlarged(small: np.ndarray) -> bytes:
    """Bilinear enlargement by four, told with loops over the weights of neighbours."""
    padded = np.pad(small, 1)
    position = (np.arange(32) + 0.5) / 4 + 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(10)[None, :]))
    return np.rint(weights @ padded @ weights.T * 255.0).astype(np.uint8).tobytes()


@pytest.mark.parametrize("task", vision.TASKS)
def test_any_prefix_is_a_fair_sample(task: str) -> None:
    labels = vision.load(task, "test").labels
    count = len(vision.classes(task))
    expected = np.bincount(labels, minlength=count) * 200 / len(labels)
    found = np.bincount(labels[:200], minlength=count)
    # Draws without replacement vary less than Poisson numbers do.
    assert (np.abs(found - expected) < 4 * np.sqrt(expected)).all()


def test_images_are_a_function_of_their_key() -> None:
    tasks._loaded.cache_clear()
    first = vision.load("signs", "validation").images.copy()
    tasks._loaded.cache_clear()
    assert np.array_equal(first, vision.load("signs", "validation").images)
    assert canvas.stream("a", 1).randint(2**31) != canvas.stream("a", 2).randint(2**31)


def test_sets_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        vision.load("shapes", "test").images[0] = 0


@pytest.mark.parametrize("task", vision.TASKS)
def test_corpus_differs_by_seed_and_shows_no_reported_image(task: str) -> None:
    reported = {content for split in ("validation", "test") for content in _contents(task, split)}
    images, labels = next(corpus.corpus(task, 64, 0))
    again, _ = next(corpus.corpus(task, 64, 0))
    other, _ = next(corpus.corpus(task, 64, 1))
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
    assert not reported & {hashlib.sha256(image.tobytes()).digest() for image in images}
    assert labels.min() >= 0
    assert labels.max() < len(vision.classes(task))


def test_unknown_names_are_refused_with_what_is_accepted() -> None:
    with pytest.raises(DataError, match=r"unknown task 'digit'\. Did you mean 'digits'\? Accepted: counting"):
        vision.load("digit", "test")
    with pytest.raises(DataError, match=r"unknown split 'dev'\..*Accepted: test, train, validation"):
        vision.load("digits", "dev")


def test_neither_importing_nor_loading_needs_torch() -> None:
    code = (
        "import sys; from fusion_bench.zoo import vision; from fusion_bench.zoo.vision import build; "
        "[vision.load(task, 'test') for task in vision.TASKS]; "
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
