"""Writing a checkpoint as a model folder, streamed slice by slice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.checkpoint.base import DTYPE_BYTES, Checkpoint
from fusion_bench.checkpoint.companions import companion_files, written_config
from fusion_bench.checkpoint.dtypes import torch_dtype
from fusion_bench.checkpoint.flusher import flushing
from fusion_bench.checkpoint.folder import CONFIG, SAFETENSORS_INDEX
from fusion_bench.checkpoint.output import Staging, check_space, check_writable, staged
from fusion_bench.checkpoint.shards import SHARD_BYTES, Shard, index_of, plan_shards
from fusion_bench.checkpoint.stream import BLOCK, for_each_slice
from fusion_bench.checkpoint.views import Cast
from fusion_bench.progress import Progress

if TYPE_CHECKING:
    import torch

__all__ = ["check_writable", "save"]

# Room for config, tokenizer and index beside the tensors.
_SPARE_BYTES = 16 * 2**20


def save(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    threads: int = 1,
    shard_bytes: int | None = SHARD_BYTES,
    dtype: str | None = None,
    progress: Progress | None = None,
    files_from: Path | None = None,
    extra_files: Mapping[str, str | bytes | Path] | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    card: str | None = None,
    overwrite: bool = False,
    block: int = BLOCK,
) -> None:
    """Writes `checkpoint` into the folder `out`: weights, index, config.json, tokenizer and generation files.

    `dtype`: what floating tensors are cast to (default: as they are); `shard_bytes`: bytes of tensor data a file, None
    for one file; `files_from`: where tokenizer and generation files come from (default: the checkpoint's folder);
    `extra_files`: further files by name, as content or as a path to copy; `card`: the text of README.md.
    Memory: `threads` slices of `block` entries. The output appears whole or not at all; a folder that holds anything
    but a former output of this function is refused unless `overwrite`. Raises OutputError.
    """
    out = Path(out)
    check_writable(out, overwrite)
    written = checkpoint if dtype is None else Cast(checkpoint, dtype)
    shards = plan_shards(written.infos, shard_bytes)
    check_space(out, sum(shard.size for shard in shards) + _SPARE_BYTES)
    config = written_config(checkpoint, written.infos, config_overrides)
    with staged(out) as staging:
        _write_tensors(written, shards, staging, threads, block, progress or Progress(enabled=False))
        files: dict[str, str | bytes | Path] = {**companion_files(files_from or checkpoint.folder)}
        if len(shards) > 1:
            files[SAFETENSORS_INDEX] = index_of(shards, written.infos)
        if config:
            files[CONFIG] = json.dumps(config, indent=2, sort_keys=True) + "\n"
        if card is not None:
            files["README.md"] = card
        for name, content in {**files, **(extra_files or {})}.items():
            staging.add(name, _content(content))


def _write_tensors(
    checkpoint: Checkpoint, shards: list[Shard], staging: Staging, threads: int, block: int, progress: Progress
) -> None:
    total = sum(info.nbytes for info in checkpoint.infos.values())
    with ExitStack() as stack:
        advance = stack.enter_context(progress.bar("writing", total, "B"))
        places: dict[str, tuple[int, int]] = {}
        for shard in shards:
            descriptor = stack.enter_context(_opened(staging.path(shard.file), shard))
            places.update({name: (descriptor, offset) for name, offset in shard.offsets.items()})
        # Entered last, so that it has ended before the files are synced and closed.
        flusher = stack.enter_context(flushing())

        def write(name: str, start: int, values: torch.Tensor) -> None:
            import torch

            info = checkpoint.infos[name]
            descriptor, offset = places[name]
            data = values.to(torch_dtype(info.dtype)).contiguous().view(torch.uint8).numpy().data
            _write(descriptor, data, offset + start * DTYPE_BYTES[info.dtype])
            flusher.wrote(descriptor, data.nbytes)
            advance(data.nbytes)

        # In the order of the files, so that each is written from front to back.
        names = [name for shard in shards for name in shard.offsets]
        for_each_slice(checkpoint, names, write, threads=threads, block=block)


@contextmanager
def _opened(path: Path, shard: Shard) -> Iterator[int]:
    """The file of a shard with its header in place and its full length; synced to disk when all went well."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(descriptor, shard.size)
        _write(descriptor, memoryview(shard.header), 0)
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: memoryview, position: int) -> None:
    done = 0
    while done < data.nbytes:
        done += os.pwrite(descriptor, data[done:], position + done)


def _content(content: str | bytes | Path) -> bytes:
    if isinstance(content, Path):
        return content.read_bytes()
    return content.encode() if isinstance(content, str) else content
