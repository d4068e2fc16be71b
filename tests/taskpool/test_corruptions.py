"""Damaged images: degrees, seeds, shapes, and values that follow from the definitions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fusion_bench.errors import ConfigError
from fusion_bench.taskpool.corruption_sheet import contact_sheet
from fusion_bench.taskpool.corruption_spatter import _edges, _equalized
from fusion_bench.taskpool.corruptions import CORRUPTIONS, canonical_corruption, corrupt

Picture = NDArray[np.uint8]


def digits(count: int) -> list[Picture]:
    """Real handwritten digits, 32 x 32."""
    from sklearn.datasets import load_digits

    originals = (Image.fromarray((image * 15.9).astype(np.uint8)) for image in load_digits().images[:count])
    return [np.array(image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")) for image in originals]


def natural(count: int, height: int = 48, width: int = 64) -> list[Picture]:
    """Noise with the spectrum of photographs: amplitude falls with 1 / frequency."""
    random = np.random.default_rng(0)
    down, across = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    fall = 1 / np.maximum(np.hypot(down, across), 1 / max(height, width))
    found = []
    for _ in range(count):
        spectrum = np.fft.fft2(random.standard_normal((3, height, width))) * fall
        image = np.fft.ifft2(spectrum).real
        image = (image - image.mean()) / image.std() * 45 + 128
        found.append(np.moveaxis(np.clip(image, 0, 255), 0, 2).astype(np.uint8))
    return found


def error(images: list[Picture], name: str, severity: int) -> float:
    """Mean squared error of the damage."""
    damaged = [corrupt(image, name, severity, index=index) for index, image in enumerate(images)]
    pairs = zip(images, damaged, strict=True)
    return float(np.mean([np.square(image.astype(float) - after).mean() for image, after in pairs]))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("kind", ["digits", "natural"])
def test_severity_is_monotone(name: str, kind: str) -> None:
    images = digits(60) if kind == "digits" else natural(30)
    errors = [error(images, name, severity) for severity in range(1, 6)]
    assert errors[0] > 0
    if (name, kind) == ("pixelate", "digits"):
        # Boxes of 32 pixels into 24 meet the grid that digits of 8 pixels were enlarged from: no order but at the ends.
        assert errors[4] > 2 * max(errors[:4])
        return
    for severity, (less, more) in enumerate(pairwise(errors), 1):
        if name == "spatter" and severity == 3:
            continue  # from water to mud: two kinds of damage, which the constants do not order
        # Degrees 3 and 4 of motion blur differ in what lies six deviations away: by the angles that are drawn.
        assert more > less * (0.97 if (name, severity) == ("motion_blur", 3) else 1), (severity, errors)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_decides_the_bytes(name: str) -> None:
    [image] = natural(1)
    before = image.copy()
    image.setflags(write=False)
    first = corrupt(image, name, 3, index=5)
    assert (first.shape, first.dtype) == (image.shape, np.uint8)
    assert (first == corrupt(image.copy(), name, 3, index=5)).all()
    assert (image == before).all()
    assert first.flags.writeable
    other = corrupt(image, name, 3, index=6)
    assert (first != other).any() == (name not in ("contrast", "jpeg_compression", "pixelate"))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (1, 1, 3), (1, 9, 3), (2, 3, 3), (31, 17, 3)])
def test_any_size(name: str, shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    for severity in range(1, 6):
        assert corrupt(image, name, severity, index=0).shape == shape


def test_gaussian_noise_has_its_deviation() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    for severity, sigma in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        noise = corrupt(grey, "gaussian_noise", severity, index=0).astype(float) - 128
        assert noise.std() / 255 == pytest.approx(sigma, rel=0.02)
        assert abs(noise.mean()) < 0.5


def test_impulses_are_salt_and_pepper() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    for severity, amount in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1):
        damaged = corrupt(grey, "impulse_noise", severity, index=0)
        assert set(np.unique(damaged)) == {0, 128, 255}
        assert (damaged != 128).mean() == pytest.approx(amount, rel=0.1)
        assert (damaged == 255).mean() == pytest.approx(amount / 2, rel=0.15)
    assert (damaged[:, :, 0] != damaged[:, :, 1]).any()


def test_contrast_pulls_to_the_mean_of_each_channel() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = (200, 100, 40)
    expected = [
        [(c - m) * 0.4 + m for c, m in zip(row, (100, 50, 20), strict=True)] for row in ((200, 100, 40), (0, 0, 0))
    ]
    damaged = corrupt(image, "contrast", 3, index=0)
    assert damaged[:, 0].tolist() == np.rint(expected).tolist()
    assert (damaged[:, 0] == damaged[:, 1]).all()


def test_motion_blur_is_a_trail_that_keeps_the_light() -> None:
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    damaged = corrupt(image, "motion_blur", 5, index=3)[:, :, 0].astype(float)
    assert damaged.sum() == pytest.approx(255, abs=10)
    rows, columns = np.nonzero(damaged)
    # One side of the point, within 45 degrees of the row, fading: weights exp(-i² / 12.5).
    assert columns.max() == 20
    assert (np.abs(rows - 20) <= 20 - columns + 1).all()
    weights = np.exp(-(np.arange(19) ** 2) / 12.5)
    assert damaged.max() == pytest.approx(255 * weights[0] / weights.sum(), abs=255 * 0.17)
    flat = np.full((9, 9, 3), 77, np.uint8)
    assert (corrupt(flat, "motion_blur", 4, index=0) == 77).all()


def test_jpeg_is_pillows() -> None:
    import io

    [image] = natural(1)
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=58)
    assert (corrupt(image, "jpeg", 3, index=0) == np.array(Image.open(content))).all()


def test_pixelate_follows_the_size_unless_parity_is_asked_for() -> None:
    [image] = natural(1, height=64, width=96)
    box = Image.Resampling.BOX
    expected = Image.fromarray(image).resize((int(96 * 0.65), int(64 * 0.65)), box).resize((96, 64), box)
    assert (corrupt(image, "pixelate", 5, index=0) == np.array(expected)).all()
    published = Image.fromarray(image).resize((20, 20), box).resize((32, 32), box)
    assert (corrupt(image, "pixelate", 5, index=0, parity=True) == np.array(published)).all()
    # On images of 32 x 32 there is nothing to correct.
    [small] = digits(1)
    assert (corrupt(small, "pixelate", 4, index=0) == corrupt(small, "pixelate", 4, index=0, parity=True)).all()


def test_mud_is_brown_and_water_is_light() -> None:
    white, black = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64, 3), np.uint8)
    muddy = corrupt(white, "spatter", 5, index=0).reshape(-1, 3).astype(float)
    cover = (255 - muddy) / (255 - np.array([63, 42, 20]))
    # Each pixel lies between white and brown; what is covered by less than 0.8 is clean.
    assert np.ptp(cover, axis=1).max() < 0.006
    assert set(np.rint(cover[:, 0] * 10)) == {0, 8, 9, 10}
    assert (cover == 0).mean() > 0.3
    wet = corrupt(black, "spatter", 2, index=0).reshape(-1, 3).astype(int)
    # The brightest drop has half the colour of water.
    assert wet[wet.sum(1).argmax()].tolist() == [88, 119, 119]
    assert (wet[:, 1] == wet[:, 2]).all()


def test_edges_lie_where_the_step_is() -> None:
    step = np.zeros((8, 8))
    step[:, 4:] = 100
    found = _edges(step)
    assert found[:, 3:5].any(axis=1).all()
    assert not found[:, :3].any()
    assert not found[:, 5:].any()
    assert not _edges(step / 10).any()


def test_evened_out_brightness() -> None:
    values = np.array([[0, 0, 1], [1, 2, 2]])
    assert _equalized(values).tolist() == [[0, 0, 128], [128, 255, 255]]
    assert _equalized(np.full((2, 2), 7)).tolist() == [[7, 7], [7, 7]]


def test_spellings() -> None:
    assert canonical_corruption("jpeg") == "jpeg_compression"
    assert canonical_corruption("Impluse_noise") == "impulse_noise"
    assert canonical_corruption(None) is None
    with pytest.raises(ConfigError, match=r"unknown corruption 'contrst'. Did you mean 'contrast'"):
        canonical_corruption("contrst")
    [image] = digits(1)
    for severity in (0, 6):
        with pytest.raises(ConfigError, match=rf"severity={severity}: out of range; accepted: 1 to 5"):
            corrupt(image, "contrast", severity, index=0)


def test_contact_sheet(tmp_path: Path) -> None:
    contact_sheet([*digits(2), *natural(1)], tmp_path / "new" / "sheet.png", side=40)
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size == (44 * 8 + 4, 44 * 3 + 20)
        assert len({sheet.crop((44 * c + 4, 20, 44 * c + 44, 60)).tobytes() for c in range(8)}) == 8
