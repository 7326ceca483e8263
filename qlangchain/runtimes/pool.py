"""One engine per artifact and options in a process, shared by every model object that wants it.

Model objects are cheap values; what is expensive lives here. A call leases an engine, which starts it where
it does not run, and an engine that nobody has leased for the keep-alive time is stopped.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from qlangchain import settings
from qlangchain.runtimes import base
from qlangchain.types import Artifact, Endpoint, EngineOptions

Key = tuple[str, str, EngineOptions]


@dataclass(slots=True)
class _Entry:
    engine: base.Engine
    leases: int = 0
    last_used: float = field(default_factory=time.monotonic)


class Pool:
    """Engines by runtime, artifact digest and options. Safe to use from any thread."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._reaper: threading.Thread | None = None

    @contextlib.contextmanager
    def lease(self, runtime: str, artifact: Artifact, options: EngineOptions) -> Iterator[Endpoint]:
        """Hold an engine for the length of a call: it is started where needed and not unloaded meanwhile."""
        with self._lock:
            entry = self._entry((runtime, artifact.digest, options), artifact)
            entry.leases += 1
        try:
            # Outside the pool's lock: one slow load must not hold up calls to other engines.
            yield entry.engine.start()
        finally:
            with self._lock:
                entry.leases -= 1
                entry.last_used = time.monotonic()
            self._wake.set()

    def engine(self, runtime: str, artifact: Artifact, options: EngineOptions) -> base.Engine:
        """Return the engine object itself, for those who supervise it (doctor, tests)."""
        with self._lock:
            return self._entry((runtime, artifact.digest, options), artifact).engine

    def close(self) -> None:
        """Stop every engine and forget it. Calls that are running end with EngineDiedError."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), {}
        self._wake.set()
        for entry in entries:
            entry.engine.stop()

    def _entry(self, key: Key, artifact: Artifact) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            if not self._entries:
                atexit.unregister(self.close)
                atexit.register(self.close)
            entry = self._entries[key] = _Entry(base.load(key[0])(artifact, key[2]))
            self._watch()
        return entry

    def _watch(self) -> None:
        if self._reaper is None or not self._reaper.is_alive():
            self._reaper = threading.Thread(target=self._reap, name="qlangchain-keep-alive", daemon=True)
            self._reaper.start()

    def _reap(self) -> None:
        while True:
            keep_alive = settings.read().keep_alive
            with self._lock:
                now = time.monotonic()
                idle = {k: e for k, e in self._entries.items() if e.leases == 0}
                overdue = [k for k, e in idle.items() if now - e.last_used >= keep_alive]
                stopping = [self._entries.pop(key) for key in overdue]
                if not self._entries:
                    self._reaper = None
                waits = [keep_alive - (now - e.last_used) for k, e in idle.items() if k not in overdue]
                ended = self._reaper is None
            for entry in stopping:
                entry.engine.stop()
            if ended:
                return
            self._wake.wait(min(waits, default=keep_alive))
            self._wake.clear()


_pool = Pool()


def shared() -> Pool:
    """Return the pool of this process."""
    return _pool


def _forget_after_fork() -> None:
    # The engines belong to the parent, and a lock may have been held at the moment of the fork.
    global _pool
    atexit.unregister(_pool.close)
    _pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
