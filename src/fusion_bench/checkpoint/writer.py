"""Writing a checkpoint as a model folder, streamed run by run, continued where it was cut short."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.companions import companion_files, written_config
from fusion_bench.checkpoint.contents import PARTIAL, look
from fusion_bench.checkpoint.digests import digest
from fusion_bench.checkpoint.folder import CONFIG, SAFETENSORS_INDEX
from fusion_bench.checkpoint.layout import Layout
from fusion_bench.checkpoint.manifest import FileEntry
from fusion_bench.checkpoint.output import check_space, check_writable, is_complete, judge
from fusion_bench.checkpoint.publish import empty, publish
from fusion_bench.checkpoint.sealed import Origin
from fusion_bench.checkpoint.shards import SHARD_BYTES, index_of, plan_shards
from fusion_bench.checkpoint.staging import claimed, staged
from fusion_bench.checkpoint.stream import runs_of
from fusion_bench.checkpoint.verify import verify
from fusion_bench.checkpoint.views import Cast
from fusion_bench.checkpoint.weights import write_tensors
from fusion_bench.progress import Progress

__all__ = ["Saved", "check_writable", "save"]

# Room for config, tokenizer and index beside the tensors.
_SPARE_BYTES = 16 * 2**20

Content = str | bytes | Path


@dataclass(frozen=True, slots=True)
class Saved:
    """What `save` did: all of it, the rest of what an earlier run began, or nothing since it was there.

    `reused`: bytes of tensors that earlier runs wrote.
    """

    how: Literal["written", "continued", "complete"]
    reused: int = 0


def save(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    threads: int = 1,
    shard_bytes: int | None = SHARD_BYTES,
    dtype: str | None = None,
    progress: Progress | None = None,
    files_from: Path | None = None,
    extra_files: Mapping[str, Content] | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    card: str | None = None,
    origin: Origin | None = None,
    overwrite: bool = False,
    block: int | None = None,
) -> Saved:
    """Writes `checkpoint` into the folder `out`: weights, index, config.json, tokenizer, manifest.

    `dtype`: what floating tensors are cast to (default: as they are); `shard_bytes`: bytes of tensor data a file, None
    for one file; `files_from`: where tokenizer and generation files come from (default: the checkpoint's folder);
    `extra_files`: further files by name, as content or as a path to copy; `card`: the text of README.md; `block`:
    entries of the slices (default: what the checkpoint prefers).

    `origin`: what decides every byte of the output (settings and inputs), as JSON. By it an interrupted output of the
    same origin is continued and a finished one is left as it is; without it none is known. Anything else in `out` is
    refused unless `overwrite`, which replaces it once the new output is whole.

    Memory: `threads` slices. The output appears whole or not at all. Raises OutputError.
    """
    out = Path(out)
    progress = progress or Progress(enabled=False)
    written = checkpoint if dtype is None else Cast(checkpoint, dtype)
    shards = plan_shards(written.infos, shard_bytes)
    size = sum(info.nbytes for info in written.infos.values())
    if check_writable(out, overwrite, origin) == "complete" and not (out / PARTIAL).exists():
        return Saved("complete", size)
    config = written_config(checkpoint, written.infos, config_overrides)
    files: dict[str, Content] = {**companion_files(files_from or checkpoint.folder)}
    if len(shards) > 1:
        files[SAFETENSORS_INDEX] = index_of(shards, written.infos)
    if config:
        files[CONFIG] = json.dumps(config, indent=2, sort_keys=True) + "\n"
    if card is not None:
        files["README.md"] = card
    files.update(extra_files or {})
    with claimed(out):
        if _is_there(out, overwrite, origin, threads, progress):
            return Saved("complete", size)
        check_space(out, sum(shard.size for shard in shards) + _SPARE_BYTES)
        # In the order of the files, so that each is written from front to back.
        names = [name for shard in shards for name in shard.offsets]
        layout = Layout(written.infos, shards, runs_of(written, names, block))
        with staged(out, origin, layout.digest) as staging:
            digests, reused = write_tensors(written, layout, staging, threads, progress)
            for name, content in files.items():
                staging.add(name, _content(content))
            heads = {s.file: FileEntry(s.size, digest(s.header).hex(), len(s.header)) for s in shards}
            staging.finish(heads, layout.entries(digests))
    return Saved("continued" if reused else "written", reused)


def _is_there(out: Path, overwrite: bool, origin: Origin | None, threads: int, progress: Progress) -> bool:
    """Whether the output is complete, once what was whole is moved into place; OutputError as `check_writable` says."""
    contents = look(out)
    judge(out, contents, overwrite, origin)
    if contents.remains is not None and contents.remains.moving is not None:
        publish(out, contents.remains.moving)
        contents = look(out)
    found = judge(out, contents, overwrite, origin)
    if overwrite and is_complete(contents, origin) and verify(out, threads, progress).whole:
        found = "complete"  # asked to replace what it wrote itself, a command needs to do so only where that is damaged
    if found == "complete":
        empty(out / PARTIAL)
    return found == "complete"


def _content(content: Content) -> bytes:
    if isinstance(content, Path):
        return content.read_bytes()
    return content.encode() if isinstance(content, str) else content
