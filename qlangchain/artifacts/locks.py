"""Locks between processes that say who holds them.

A lock is a file that the system unlocks when its process ends, however it ends; the file beside it names the
holder, for the message to whoever waits in vain.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from qlangchain.artifacts.atomic import read_json, unwritable, write_json
from qlangchain.errors import InvalidInputError, StoreLockedError

_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@contextlib.contextmanager
def hold(directory: Path, name: str, *, what: str, timeout: float) -> Iterator[None]:
    """Hold the lock `name` in `directory` for the block; threads exclude each other as processes do.

    `what` completes the sentence "process 1234 is ...", such as "fetching model.gguf", and `timeout` is the
    longest wait in seconds. It is not reentrant.

    Raises:
        StoreLockedError: another process or thread has held it all the time; the message has its id.
        ArtifactError: the directory cannot be written.

    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(f"{name[:80]!r} cannot name a lock.", hint="Use letters, digits, '.', '_' and '-'.")
    path = directory / f"{name}.lock"
    lock, holder = FileLock(path), path.with_suffix(".holder")
    end = time.monotonic() + max(timeout, 0.0)
    try:
        while not lock.is_locked:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=max(end - time.monotonic(), 0.0), poll_interval=0.05)
            except FileNotFoundError:  # who held it has removed the directory with it
                if time.monotonic() > end:
                    raise
    except Timeout:
        raise StoreLockedError(_blame(holder, what, timeout)) from None
    except OSError as error:
        raise unwritable(directory.parent, error) from error
    try:
        with contextlib.suppress(OSError):  # it only names who is at work
            write_json(holder, {"pid": os.getpid(), "what": what, "since": int(time.time())})
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _blame(holder: Path, what: str, timeout: float) -> str:
    note = read_json(holder)
    who = f"Process {note['pid']}" if isinstance(note.get("pid"), int) else "Another process"
    doing = str(note.get("what") or what)[:200]
    since = note.get("since")
    ago = f" for {max(0, int(time.time()) - since)} s" if isinstance(since, int) else ""
    return f"{who} has been {doing}{ago}; this one has waited {timeout:g} s for it."


def sweep(directory: Path, *, dry_run: bool) -> list[Path]:
    """Remove the files of locks that nobody holds, and return them. One that is held, or wanted, stays."""
    swept: list[Path] = []
    for path in sorted(directory.glob("*.lock")) if directory.is_dir() else []:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue
        try:
            swept.append(path)
            if not dry_run:
                # While it is held: who opened it meanwhile finds the inode gone and opens the name anew.
                path.with_suffix(".holder").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        except OSError:
            swept.pop()
        finally:
            lock.release()
    return swept
