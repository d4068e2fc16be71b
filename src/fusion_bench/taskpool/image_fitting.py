"""Images for algorithms that look at data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from fusion_bench.fitting import Batch, TaskData

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from fusion_bench.taskpool.image_outputs import Outputs
    from fusion_bench.taskpool.image_pixels import Pixels

# Resized images of a task that are held in memory, in bytes.
_HELD: Final = 256_000_000


class ImageData(TaskData):
    """The images of one task, in the order of `pixels`, with the outputs that the task's scores are read from.

    Where `facts` say ``labels: false``, the right answers are not part of the data.
    """

    def __init__(
        self,
        name: str,
        pixels: Pixels,
        outputs: Outputs,
        device: torch.device,
        dtype: torch.dtype,
        facts: Mapping[str, Any],
        threads: int = 1,
    ) -> None:
        self.name, self.facts, self.labelled = name, facts, False
        self._pixels, self._outputs = pixels, outputs
        self._device, self._dtype, self._threads = device, dtype, threads
        shown = [int(pixels.images.labels[place]) for place in pixels.places]
        self._labels = shown if facts["labels"] else None
        content = [pixels.digest, list(pixels.places), outputs.digest, self._labels, str(dtype)]
        self.digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
        self._held: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._pixels)

    def collate(self, places: Sequence[int]) -> Batch:
        import torch

        values = torch.from_numpy(self._pixels.processor.scaled(self._stored(places)))
        labels = None if self._labels is None else [self._labels[place] for place in places]
        return Batch(
            {"pixel_values": values.to(self._device, self._dtype)},
            tuple(self._pixels.places[place] for place in places),
            None if labels is None else torch.tensor(labels, device=self._device),
        )

    def forward(self, module: Any, batch: Batch) -> None:
        self._outputs.features(module, batch.inputs["pixel_values"])

    def logits(self, module: Any, batch: Batch) -> torch.Tensor:
        return self._outputs.logits(module, batch.inputs["pixel_values"])

    def log_probs(self, module: Any, batch: Batch) -> torch.Tensor:
        return self.logits(module, batch).log_softmax(1)

    def gold_log_prob(self, module: Any, batch: Batch) -> torch.Tensor:
        if batch.labels is None:
            raise ValueError(f"{self.name}: the right answers are not part of these data")
        return self.log_probs(module, batch).gather(1, batch.labels.unsqueeze(1)).squeeze(1)

    def _stored(self, places: Sequence[int]) -> NDArray[Any]:
        import numpy as np

        new = [place for place in dict.fromkeys(places) if place not in self._held]
        made = dict(zip(new, self._pixels.at(new, self._threads), strict=True)) if new else {}
        channels, height, width = self._pixels.shape
        if (len(self._held) + len(made)) * channels * height * width <= _HELD:
            self._held.update(made)
        return np.stack([made[place] if place in made else self._held[place] for place in places])
