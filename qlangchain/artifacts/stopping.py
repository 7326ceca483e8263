"""Ending a fetch from outside: threads that wait in a socket are woken, so that none is waited for in vain."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class StoppedError(Exception):
    """Raised inside a thread of a fetch that has been ended; the caller of the fetch gets the reason instead."""


class Stopping:
    """The common end of all threads of one fetch. `until` is a time of `time.monotonic()`, None without a limit."""

    def __init__(self, until: float | None = None) -> None:
        self.until = until
        self.event = threading.Event()
        self.trouble: str | None = None  # what failed last and was tried again
        self._children: set[Stopping] = set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    def left(self) -> float:
        """Seconds until the deadline, infinite without one."""
        return float("inf") if self.until is None else self.until - time.monotonic()

    def check(self) -> None:
        """Raise StoppedError where the fetch has been ended."""
        if self.event.is_set():
            raise StoppedError

    def stop(self) -> None:
        """End it: every registered socket is shut down, which wakes whoever reads, writes or connects."""
        self.event.set()
        with self._lock:
            children, sockets = list(self._children), list(self._sockets)
        for child in children:
            child.stop()
        for each in sockets:
            with contextlib.suppress(OSError):
                # Not the method of SSLSocket, which would drop the state that the reading thread is using.
                socket.socket.shutdown(each, socket.SHUT_RDWR)

    def child(self) -> Stopping:
        """A part that ends with the whole, and can be ended alone; `disown` it when it is done."""
        child = Stopping(self.until)
        with self._lock:
            self._children.add(child)
        if self.event.is_set():
            child.stop()
        return child

    def disown(self, child: Stopping) -> None:
        """Forget a part that is done."""
        with self._lock:
            self._children.discard(child)

    def register(self, one: socket.socket) -> None:
        """Have `stop` shut this socket down, also where it has been called already."""
        with self._lock:
            self._sockets.add(one)
        self.check()

    def forget(self, one: socket.socket) -> None:
        """The socket is closed, or no longer ours."""
        with self._lock:
            self._sockets.discard(one)
