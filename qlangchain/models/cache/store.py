"""The file of a response cache: SQLite, shared by threads and processes, and never an exception.

Whatever goes wrong with the file is a miss and one warning in the log. A file that is damaged is renamed to
`*.damaged-N` and a new one begun; a row that is damaged is deleted.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from filelock import FileLock

from qlangchain.errors import InvalidInputError
from qlangchain.models.cache import database
from qlangchain.models.cache import secret as secrets

logger = logging.getLogger(__name__)

_REST_SECONDS: Final = 5.0  # after an error the file is left alone for so long, so that calls do not wait for it
_MOST_IDLE: Final = 8  # connections kept open
_TOUCHES: Final = 64  # access times written at once
_SKEW_SECONDS: Final = 60.0  # clocks of machines that share a file differ; what is from further ahead is not believed

Found = TypeVar("Found")


class Store:
    """Rows of bytes under keys, in one file. Connections are lent to one thread at a time."""

    def __init__(self, path: Path, *, max_bytes: int, ttl: float | None, store_prompts: bool) -> None:
        """Nothing is created before it is needed.

        Raises:
            InvalidInputError: the path is a directory, or a file that is no response cache.

        """
        self.path = path
        self.secret_path = path.with_name(f"{path.name}.secret")
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._store_prompts = store_prompts
        self._secret: bytes | None = None
        self._identity: tuple[int, int] | None = None  # device and inode of the file that connections are to
        self._idle: list[sqlite3.Connection] = []
        self._touched: dict[bytes, float] = {}
        self._unweighed = max_bytes  # bytes written since the rows were last added up; so the first write does it
        self._rests_until = 0.0
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._closing = weakref.finalize(self, _close, self._idle)
        _stores.add(self)
        self._check()

    @property
    def is_open(self) -> bool:
        """Whether naming an entry needs no look at the disk."""
        return self._secret is not None

    def key(self, prompt: str, llm_string: str) -> bytes | None:
        """Name an entry, or return None where the store cannot be used."""
        secret = self._secret
        if secret is None and self._run(lambda _: True, otherwise=False):
            secret = self._secret
        return None if secret is None else secrets.entry_key(secret, prompt, llm_string)

    def get(self, key: bytes) -> tuple[bytes, float] | None:
        """Return (value, seconds that it may still be used), or None."""
        row = self._run(
            lambda connection: connection.execute(
                "SELECT tag, created, value FROM responses WHERE key = ?", (key,)
            ).fetchone(),
            otherwise=None,
        )
        if row is None or self._secret is None:
            return None
        tag, created, value = row
        if not (
            isinstance(tag, bytes)
            and isinstance(created, float)
            and isinstance(value, bytes)
            and hmac.compare_digest(tag, secrets.entry_tag(self._secret, key, created, value))
        ):
            self._tell("row", "a row of %s was altered; it is deleted and its answer made anew", self.path)
            self.delete(key)
            return None
        left = self._left(created)
        if left <= 0:
            self.delete(key)
            return None
        self.touch(key)
        return value, left

    def put(self, key: bytes, value: bytes, prompt: str, llm_string: str) -> float | None:
        """Keep a value and return the seconds that it may be used, or None where it could not be written."""
        if self._secret is None:
            return None
        created = time.time()
        tag = secrets.entry_tag(self._secret, key, created, value)
        shown = json.dumps([prompt, llm_string]) if self._store_prompts else None
        size = len(value) + len(shown or "") + len(key) + len(tag) + 64  # 64: what SQLite adds to a row and its index
        row = (key, tag, created, created, size, shown, value)

        def write(connection: sqlite3.Connection) -> bool:
            with database.transaction(connection):
                self._write_touches(connection)
                connection.execute(database.INSERT, row)
                self._unweighed += size
                crowded = self._unweighed >= self._max_bytes // 16
                if crowded:
                    self._evict(connection)
            if crowded:
                connection.execute("PRAGMA incremental_vacuum").fetchall()
            return True

        return self._left(created) if self._write(write, otherwise=False) else None

    def touch(self, key: bytes) -> None:
        """Remember that an entry was used. Access times are written in batches, with the next write or the 64th."""
        with self._lock:
            self._touched[key] = time.time()
            due = len(self._touched) >= _TOUCHES
        if due:
            self._write(self._flush, otherwise=None)

    def delete(self, key: bytes) -> None:
        """Remove one entry."""
        self._write(
            lambda connection: connection.execute("DELETE FROM responses WHERE key = ?", (key,)), otherwise=None
        )

    def clear(self) -> None:
        """Remove all entries, and their bytes from the file."""

        def remove(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM responses")
            connection.execute("PRAGMA incremental_vacuum").fetchall()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

        self._rests_until = 0.0  # whoever wants the answers gone wants it tried now
        self._write(remove, otherwise=None)

    def close(self) -> None:
        """Write what is pending and close the connections; the next use opens them again."""
        if self._touched and self._idle:
            self._write(self._flush, otherwise=None)
        with self._lock:
            _close(self._idle)

    def forget_after_fork(self) -> None:
        """Use none of the parent's connections and locks in a forked child."""
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        _parents_connections.extend(self._idle)
        self._idle.clear()
        self._touched = {}

    def _left(self, created: float) -> float:
        if self._ttl is None:
            return float("inf")
        age = time.time() - created
        return self._ttl - max(age, 0.0) if age > -_SKEW_SECONDS else 0.0

    def _check(self) -> None:
        """Refuse a path that cannot be meant."""
        try:
            if self.path.is_dir():
                raise InvalidInputError(f"{self.path} is a directory.", hint="Pass the path of a file.")
            if self.secret_path.exists() or not self.path.exists() or self.path.stat().st_size == 0:
                return
            with _opening, contextlib.closing(database.connect(self.path)) as connection:
                foreign = database.is_foreign(connection)
        except InvalidInputError:
            raise
        except Exception as error:
            foreign = database.is_damage(error)  # without a secret beside it, it was never one of ours
        if foreign:
            raise InvalidInputError(
                f"{self.path} is not a response cache.", hint="Pass another path; nothing was changed."
            )

    def _run(self, work: Callable[[sqlite3.Connection], Found], otherwise: Found) -> Found:
        if time.monotonic() < self._rests_until:
            return otherwise
        try:
            with self._lent() as connection:
                return work(connection)
        except Exception as error:  # damaged pages make sqlite3 raise more than its own classes
            self._meet(error)
            return otherwise

    def _write(self, work: Callable[[sqlite3.Connection], Found], otherwise: Found) -> Found:
        with self._writing:  # threads that queue here wait less than in SQLite, which polls
            return self._run(work, otherwise)

    def _meet(self, error: Exception) -> None:
        """Say what went wrong, once, and do about it what can be done."""
        if database.is_damage(error):
            try:
                with _opening, FileLock(f"{self.path}.lock", timeout=database.BUSY_SECONDS):
                    # Unless another thread or process has done so, and the path has a new file by now.
                    if self._identity is not None and self._identity == _identity_of(self.path):
                        self._set_aside(error)
                return
            except OSError as unable:
                error = unable
        self._rests_until = time.monotonic() + _REST_SECONDS
        self._tell(type(error).__name__, "the response cache at %s cannot be used for now: %s", self.path, str(error))

    def _set_aside(self, error: Exception) -> None:
        with self._lock:
            _close(self._idle)
            self._identity = None
        for suffix in ("-wal", "-shm"):
            self.path.with_name(f"{self.path.name}{suffix}").unlink(missing_ok=True)
        target = secrets.set_aside(self.path)
        self._tell(
            "damage", "%s is damaged (%s); it is now %s, and a new one is begun", self.path, str(error), target.name
        )

    def _tell(self, what: str, message: str, *values: object) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning(message, *values)

    @contextlib.contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection; one that met an error is closed instead of taken back."""
        connection = self._idle_connection() or self._open()
        opened = self._identity
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if opened == self._identity and len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _idle_connection(self) -> sqlite3.Connection | None:
        with self._lock:
            # A file that was deleted or replaced must not be written to through old connections.
            if self._idle and _identity_of(self.path) != self._identity:
                _close(self._idle)
            return self._idle.pop() if self._idle else None

    def _open(self) -> sqlite3.Connection:
        """Connect, after making the file and its secret where they are missing.

        Opening is done by one thread of a process at a time: closing any descriptor of a file that SQLite has
        open would drop the process's locks on it.
        """
        with _opening:
            identity = _identity_of(self.path)
            if identity is not None and identity == self._identity:
                return database.connect(self.path)
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=database.BUSY_SECONDS, mode=0o600):
                ours = self.secret_path.exists()
                try:
                    return self._connect_first(ours=ours)
                except Exception as error:
                    if not database.is_damage(error):
                        raise
                    if not ours:
                        raise database.ForeignError(f"{self.path.name} is not a response cache") from None
                    self._set_aside(error)
                return self._connect_first(ours=True)

    def _connect_first(self, *, ours: bool) -> sqlite3.Connection:
        """Connect to a file that this store has not seen yet. The caller holds the lock of opening."""
        if not self.path.exists():
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = database.connect(self.path)
        try:
            database.prepare(connection, ours=ours)
            if self.path.stat().st_mode & 0o077:
                self.path.chmod(0o600)
            self._secret = secrets.load(self.secret_path)
            self._identity = _identity_of(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _flush(self, connection: sqlite3.Connection) -> None:
        with database.transaction(connection):
            self._write_touches(connection)

    def _write_touches(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            touched, self._touched = self._touched, {}
        connection.executemany(
            "UPDATE responses SET used = ? WHERE key = ?", [(used, key) for key, used in touched.items()]
        )

    def _evict(self, connection: sqlite3.Connection) -> None:
        """Remove what is too old, then what was not used for the longest time, down to seven eighths of max_bytes."""
        if self._ttl is not None:
            connection.execute("DELETE FROM responses WHERE created < ?", (time.time() - self._ttl,))
        (total,) = connection.execute("SELECT total(size) FROM responses").fetchone()
        if total > self._max_bytes - self._max_bytes // 16:
            excess = total - (self._max_bytes - self._max_bytes // 8)
            leaving = []
            for row, size in connection.execute("SELECT rowid, CAST(size AS INTEGER) FROM responses ORDER BY used"):
                leaving.append((row,))
                excess -= size
                if excess <= 0:
                    break
            connection.executemany("DELETE FROM responses WHERE rowid = ?", leaving)
        self._unweighed = 0


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _close(connections: list[sqlite3.Connection]) -> None:
    while connections:
        with contextlib.suppress(sqlite3.Error):
            connections.pop().close()


_opening = threading.Lock()
_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_parents_connections: list[sqlite3.Connection] = []  # kept open: closing them in a child could disturb the parent


def _forget_after_fork() -> None:
    global _opening
    _opening = threading.Lock()
    for store in list(_stores):
        store.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
