"""The classes that a model gives to images, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from fusion_bench.errors import CheckpointError
from fusion_bench.parallel import ordered_map
from fusion_bench.taskpool.generation import Answers
from fusion_bench.taskpool.image_pixels import Pixels
from fusion_bench.taskpool.placement import parallelism

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Logits = Callable[["torch.Tensor"], "torch.Tensor"]
# Images a batch where the settings leave it open.
_AUTOMATIC: Final = {"small": 64, "cpu": 16, "gpu": 128}


@dataclass(frozen=True, slots=True)
class Predictor:
    """A loaded model. Its predictions depend neither on batches nor on the number of workers.

    `logits`: normalised images of `dtype` on `device` to a score for every class; of equal scores the first counts.
    `batch_size`: images a batch; `workers`: batches under way at once, each with `threads` threads for an operation;
    `readers`: threads that decode images.
    """

    logits: Logits
    device: torch.device
    dtype: torch.dtype
    batch_size: int
    workers: int = 1
    threads: int = 1
    readers: int = 1

    def predict(self, pixels: Pixels, kept: Answers, advance: Callable[[float], None]) -> tuple[list[int], int]:
        """The class of each image, and how many came out of `kept`, to which new ones are handed batch by batch.

        Keys of `kept` are places in the data set. `advance` is told how many images.
        """
        known = {key: int(answer) for key, answer in kept.read().items() if answer.isdecimal()}
        keys = [str(place) for place in pixels.places]
        fresh = [position for position, key in enumerate(keys) if key not in known]
        advance(len(keys) - len(fresh))
        # In the order of the files, which are read a block at a time.
        fresh.sort(key=lambda position: pixels.places[position])
        groups = [fresh[start : start + self.batch_size] for start in range(0, len(fresh), self.batch_size)]
        for group, found in zip(groups, self._classes(pixels, groups), strict=True):
            pairs = [(keys[position], label) for position, label in zip(group, found, strict=True)]
            kept.append([(key, str(label)) for key, label in pairs])
            known.update(pairs)
            advance(len(group))
        return [known[key] for key in keys], len(keys) - len(fresh)

    def _classes(self, pixels: Pixels, groups: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        import torch

        def classify(batch: tuple[Sequence[int], NDArray[Any]]) -> list[int]:
            torch.set_num_threads(self.threads)
            return self._batch(pixels, batch[1])

        # Even for a single worker on a thread of its own: the number of threads is a property of the calling thread.
        return ordered_map(classify, pixels.batches(groups, self.readers), self.workers)

    def _batch(self, pixels: Pixels, stored: NDArray[Any]) -> list[int]:
        import torch

        try:
            with torch.inference_mode():
                values = torch.from_numpy(pixels.processor.scaled(stored)).to(self.device, self.dtype)
                scores = self.logits(values)
                if not bool(torch.isfinite(scores).all()):
                    raise CheckpointError("the model gives scores that are no numbers: its weights are not finite.")
                found: list[int] = scores.argmax(dim=-1).tolist()
                return found
        except torch.OutOfMemoryError:
            if len(stored) == 1:
                raise
        # Outside the handler, whose traceback would keep the failed attempt's tensors alive.
        torch.cuda.empty_cache()
        half = len(stored) // 2
        return self._batch(pixels, stored[:half]) + self._batch(pixels, stored[half:])


def predictor(
    logits: Logits,
    device: torch.device,
    dtype: torch.dtype,
    *,
    width: int,
    batch_size: int | Literal["auto"],
    cores: int,
) -> Predictor:
    """A predictor with batches and threads that suit a model of some width on this many cores."""
    kind: Literal["small", "cpu", "gpu"] = "gpu" if device.type != "cpu" else "small" if width < 256 else "cpu"
    workers, threads = parallelism(kind, cores)
    size = _AUTOMATIC[kind] if batch_size == "auto" else batch_size
    return Predictor(logits, device, dtype, size, workers, threads, readers=cores)
