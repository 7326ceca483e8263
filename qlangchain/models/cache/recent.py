"""The entries used last, in memory, as bytes: who reads one makes its own objects from it."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict


class Recent:
    """Bytes under keys, at most `max_bytes` of them; the least recently used ones go first. For any thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        _all.add(self)

    def get(self, key: bytes) -> bytes | None:
        """Return what was put under the key, unless its time is over."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            value, ends = entry
            if time.monotonic() >= ends:
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return value

    def put(self, key: bytes, value: bytes, seconds: float) -> None:
        """Keep the value for at most `seconds`."""
        with self._lock:
            self._drop(key)
            self._entries[key] = (value, time.monotonic() + seconds)
            self._bytes += len(value)
            while self._bytes > self.max_bytes:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def forget_after_fork(self) -> None:
        """Begin anew in a forked child, where the lock may be held by a thread that does not exist there."""
        self._lock = threading.Lock()
        self.clear()

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= len(entry[0])


_all: weakref.WeakSet[Recent] = weakref.WeakSet()


def _forget_after_fork() -> None:
    for recent in list(_all):
        recent.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
