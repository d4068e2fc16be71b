"""The journal of an unfinished output: which runs are written, with the digests of their pieces."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import xxhash

_DIGEST_BYTES = 16


class Journal:
    """Lines that are appended once the data they speak of are written. Each has a check of its own: what a kill or a
    full disk cut off, or a disk garbled, is passed over, and the run it spoke of is computed again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    @staticmethod
    def begun(path: Path) -> bool:
        """Whether anything is written in the journal at `path`."""
        return path.exists() and path.stat().st_size > 0

    def read(self) -> dict[int, list[bytes]]:
        """Index of a run -> digests of its pieces; the last word on a run counts."""
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._append(b"\n")  # so that the next line stands alone
        found: dict[int, list[bytes]] = {}
        for line in content.split(b"\n"):
            body, _, check = line.rpartition(b" ")
            if not body or check != _check(body):
                continue
            index, _, digests = body.partition(b" ")
            raw = bytes.fromhex(digests.decode())
            found[int(index)] = [raw[at : at + _DIGEST_BYTES] for at in range(0, len(raw), _DIGEST_BYTES)]
        return found

    def add(self, index: int, digests: Sequence[bytes]) -> None:
        """Says that run `index` is written."""
        body = b"%d %s" % (index, b"".join(digests).hex().encode())
        self._append(b"%s %s\n" % (body, _check(body)))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, line: bytes) -> None:
        with self._lock:
            done = 0
            while done < len(line):
                done += os.write(self._descriptor, line[done:])


def _check(body: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(body).encode()
