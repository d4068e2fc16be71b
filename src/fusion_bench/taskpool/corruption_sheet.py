"""A sheet of images, clean beside damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_bench.taskpool.corruptions import CORRUPTIONS, corrupt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def contact_sheet(images: Sequence[NDArray[np.uint8]], path: Path | str, severity: int = 5, side: int = 112) -> None:
    """Writes a PNG: a row an image, a column for the clean image and each corruption, in the order of `CORRUPTIONS`.

    `images`: rows x columns x red-green-blue; `side`: of the square that each is shown in, in pixels. The damage is
    done at the image's own size.
    """
    from PIL import Image, ImageDraw

    if not images:
        raise ValueError("a contact sheet needs at least one image")
    names = ("clean", *CORRUPTIONS)
    margin, title = 4, 16
    step = side + margin
    sheet = Image.new("RGB", (step * len(names) + margin, step * len(images) + margin + title), "white")
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        left = margin + column * step
        pen.text((left, 2), name, fill="black")
        for row, image in enumerate(images):
            shown = image if name == "clean" else corrupt(image, name, severity, index=row)
            square = Image.fromarray(shown).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(square, (left, title + margin + row * step))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, "PNG")
