"""From decoded images to what a vision tower takes, as the image processor of the pre-trained model does it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.errors import ConfigError, DataError
from fusion_bench.taskpool.image_clip import PREPROCESSOR

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Facts of a preprocessor_config.json that name the program, not what it does.
_TRIVIA: Final = frozenset({"processor_class", "feature_extractor_type", "image_processor_type"})


class ImageProcessor:
    """transformers' image processor in its Pillow form, in two steps: resizing to bytes, then scaling to numbers.

    Between them images are small, so that is where they are kept. Both together equal the processor called once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers: NDArray[np.float32] | None = None

    @cached_property
    def _inner(self) -> Any:
        import transformers
        from transformers.utils import logging as untyped

        logging: Any = untyped
        auto: Any = transformers.AutoImageProcessor
        level = logging.get_verbosity()
        # It notes that torchvision is absent, or that another form of the processor is not taken.
        logging.set_verbosity_error()
        try:
            # Pillow whether or not torchvision is there: the two resize differently.
            return auto.from_pretrained(self.folder, backend="pil")
        except Exception as fault:  # a broken file surfaces as anything
            raise ConfigError(f"{self.folder / PREPROCESSOR} cannot be used: {fault}") from fault
        finally:
            logging.set_verbosity(level)

    @cached_property
    def digest(self) -> str:
        """128 bits over everything that decides what it does, the version of Pillow included."""
        import PIL

        facts = {key: value for key, value in self._inner.to_dict().items() if key not in _TRIVIA}
        text = json.dumps({"processor": facts, "pillow": PIL.__version__}, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def resized(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
        """Images x channels x height x width, bytes unless the processor is of an unusual kind."""
        import numpy as np

        # Height before width before channels, whatever the sizes are: a thin image is not taken for a transposed one.
        found = self._inner(
            list(images), do_rescale=False, do_normalize=False, input_data_format="channels_last", return_tensors="np"
        )
        pixels: NDArray[Any] = np.ascontiguousarray(found["pixel_values"])
        if pixels.ndim != 4:
            raise DataError(f"the image processor of {self.folder} gives images of several sizes.")
        return pixels

    def scaled(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """What the tower takes: bytes divided by 255, channel means taken off, divided by the deviations."""
        import numpy as np

        if pixels.dtype != np.uint8:
            return self._scaled(pixels)
        # Each byte of a channel becomes one number: the processor is asked for all of them once.
        table = self._table(pixels.shape[1])
        found = np.empty(pixels.shape, dtype=np.float32)
        for channel, numbers in enumerate(table):
            np.take(numbers, pixels[:, channel], out=found[:, channel])
        return found

    def _table(self, channels: int) -> NDArray[np.float32]:
        """The number for each byte: channels x 256."""
        import numpy as np

        if self._numbers is None or len(self._numbers) != channels:
            every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(channels, axis=1)
            self._numbers = self._scaled(every).reshape(channels, 256)
        return self._numbers

    def _scaled(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        import numpy as np

        found = self._inner(
            list(pixels),
            do_resize=False,
            do_center_crop=False,
            do_convert_rgb=False,
            input_data_format="channels_first",
            return_tensors="np",
        )
        return np.ascontiguousarray(found["pixel_values"], dtype=np.float32)
