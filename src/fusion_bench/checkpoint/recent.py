"""The last few results of loading, shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

Loaded = TypeVar("Loaded")


class Recent:
    """Keeps the `limit` results that were asked for last.

    Two threads that miss at once both load; loading is cheap here and gives equal results.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, object] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, load: Callable[[], Loaded]) -> Loaded:
        """What `load` gives; the same `key` always goes with the same kind of result."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]  # type: ignore[return-value]  # by the rule on keys
        loaded = load()
        with self._lock:
            self._kept[key] = loaded
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return loaded
