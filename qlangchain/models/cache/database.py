"""The SQLite database of a response cache: how to connect to it, how it is made, and how its damage shows."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

BUSY_SECONDS: Final = 2.0  # a write that waits longer for another process's is given up: it is only a cache
_APPLICATION: Final = 0x716C6361  # "qlca": tells our files from other programs'
_SCHEMA: Final = 1
_CREATE: Final = """
    DROP TABLE IF EXISTS responses;
    CREATE TABLE responses (
        key BLOB PRIMARY KEY, tag BLOB, created REAL, used REAL, size INTEGER, prompt TEXT, value BLOB
    );
    CREATE INDEX responses_by_use ON responses (used, size);
"""
_COLUMNS: Final = "key, tag, created, used, size, prompt, value"
INSERT: Final = f"INSERT OR REPLACE INTO responses ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}


class ForeignError(Exception):
    """The file belongs to somebody else."""


def connect(path: Path) -> sqlite3.Connection:
    """Connect to a file that is there. The connection may go from thread to thread, one at a time."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.text_factory = bytes  # a damaged text must not fail in the middle of reading a row
    try:
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = NORMAL", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, *, ours: bool) -> None:
    """Make the table where it is missing or of another version.

    `ours`: the file's secret lies beside it, so if it has another program's mark, that is damage.
    """
    if is_foreign(connection):
        raise _damage("another program's mark") if ours else ForeignError("another program's tables")
    marked = _pragma(connection, "application_id") == _APPLICATION
    if not marked:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA journal_size_limit = 4194304").fetchall()
    if _pragma(connection, "user_version") != _SCHEMA or not marked:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_CREATE}PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_SCHEMA}; COMMIT"
        )
    connection.execute(f"SELECT {_COLUMNS} FROM responses LIMIT 0")  # noqa: S608


def is_foreign(connection: sqlite3.Connection) -> bool:
    """Whether this database is in use and not marked as a response cache."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return bool(tables) and _pragma(connection, "application_id") != _APPLICATION


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Begin and commit; after an error the connection is closed by its lender, which rolls back."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _damage(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the file is not what we made of it."""
    if not isinstance(error, sqlite3.Error):
        return isinstance(error, UnicodeDecodeError)  # the message of an error that quotes a damaged schema
    # SQLITE_ERROR: our statements are constant, so it is the table that is not as it should be.
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED | {sqlite3.SQLITE_ERROR}
