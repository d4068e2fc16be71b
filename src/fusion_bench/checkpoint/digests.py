"""Digests of what is written: taken piece by piece, so that pieces may be written in any order by several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

from fusion_bench.checkpoint.base import BLOCK, Piece

METHOD = f"xxh3-128 of the xxh3-128 digests of pieces of {BLOCK} entries"

# Bytes read at a time, and bytes that one task of a pool reads.
_CHUNK = 4 * 2**20
_TASK = 64 * 2**20

Extent = tuple[int, int, int]
"""A descriptor, a position in its file, a number of bytes."""


def digest(data: bytes | memoryview) -> bytes:
    """The 16 bytes of xxh3-128."""
    return xxhash.xxh3_128_digest(data)


def combined(pieces: Iterable[bytes]) -> str:
    """The digest of a tensor, in hexadecimal, from those of its pieces in order."""
    return digest(b"".join(pieces)).hex()


def cut(name: str, start: int, stop: int, step: int = BLOCK) -> Iterator[Piece]:
    """The pieces that have digests of their own; none where there are no entries."""
    for begin in range(start, stop, step):
        yield name, begin, min(begin + step, stop)


def digests_of(
    extents: Sequence[Extent], threads: int, advance: Callable[[float], None] | None = None
) -> list[bytes | None]:
    """The digest of each extent, read on `threads` threads; None where the file ends early or cannot be read."""

    def work(batch: Sequence[Extent]) -> list[bytes | None]:
        buffer = memoryview(bytearray(min(_CHUNK, max(count for _, _, count in batch))))
        found = [_read(extent, buffer) for extent in batch]
        if advance is not None:
            advance(sum(count for _, _, count in batch))
        return found

    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="digests")
    try:
        return [each for found in pool.map(work, _batches(extents)) for each in found]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(extents: Sequence[Extent]) -> Iterator[Sequence[Extent]]:
    first, held = 0, 0
    for at, (_, _, count) in enumerate(extents):
        held += count
        if held >= _TASK:
            yield extents[first : at + 1]
            first, held = at + 1, 0
    if first < len(extents):
        yield extents[first:]


def _read(extent: Extent, buffer: memoryview) -> bytes | None:
    descriptor, position, count = extent
    state = xxhash.xxh3_128()
    done = 0
    try:
        while done < count:
            got = os.preadv(descriptor, [buffer[: count - done]], position + done)
            if got == 0:
                return None
            state.update(buffer[:got])
            done += got
    except OSError:
        return None
    return state.digest()
