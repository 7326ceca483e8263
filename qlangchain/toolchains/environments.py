"""Environments: made from pins, found again, listed, removed.

<store>/toolchains/<name>-<hash>/                   a virtual environment; the hash is that of its pins
<store>/toolchains/<name>-<hash>/environment.json   written last: without it the environment is not there
<store>/toolchains/<name>-<hash>.log                what was said while it was made; kept where that failed
<store>/toolchains/<name>-<hash>.lock               held while it is made or removed

A virtual environment cannot be moved, so it is made in its place. What a kill leaves has no `environment.json`, and
the next try begins by removing it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from qlangchain import settings
from qlangchain.errors import (
    DiskFullError,
    MissingDependencyError,
    OfflineError,
    StoreLockedError,
    ToolchainError,
)
from qlangchain.toolchains import pins
from qlangchain.toolchains.install import Progress, fill, python_of
from qlangchain.toolchains.pins import Toolchain

State = Literal["ready", "named", "absent", "incomplete", "outdated"]

_MANIFEST: Final = "environment.json"
_LOCK_SECONDS: Final = 3600.0  # making one takes minutes; who waits longer waits for a stopped process
_HASH: Final = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment of a toolchain, or the place for one.

    `state` is "ready", "named" (its interpreter is named by a setting), "absent", "incomplete" (a kill interrupted
    its making) or "outdated" (made from earlier pins). `size_bytes` is what it takes on the disk, 0 where unknown.
    """

    name: str
    state: State
    python: Path
    path: Path | None = None
    size_bytes: int = 0
    created: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether its interpreter can be run."""
        return self.state in ("ready", "named")


def locate(name: str, *, known: Mapping[str, Toolchain] | None = None) -> Environment | None:
    """Return the environment of a toolchain, or None where there is none that can be used. Nothing is made.

    Raises:
        InvalidInputError: no toolchain has the name.
        MissingDependencyError: a setting names an interpreter that is not there.

    """
    toolchain = pins.find(name, known)
    named = _named(toolchain)
    if named is not None:
        return named
    found = _look(_root() / toolchain.directory, toolchain)
    return found if found.is_usable else None


def require(*names: str, known: Mapping[str, Toolchain] | None = None) -> Environment:
    """Return the environment of the first of these toolchains that has one.

    Raises:
        MissingDependencyError: none has; the hint has the command that makes the first.

    """
    for name in names:
        found = locate(name, known=known)
        if found is not None:
            return found
    first = pins.find(names[0], known)
    variable = f", or name an interpreter that has it in {_variable(first)}" if first.setting else ""
    raise MissingDependencyError(
        f"There is no environment for {' or '.join(names)} on this machine.",
        hint=f"Run `qlangchain env create {first.name}`{variable}.",
    )


def create(
    name: str,
    *,
    progress: Progress | None = None,
    cancelled: threading.Event | None = None,
    offline: bool | None = None,
    known: Mapping[str, Toolchain] | None = None,
) -> Environment:
    """Make the environment of a toolchain, or return the one that is there.

    `progress` is called with a line at a time. Setting `cancelled` from another thread ends it. Whatever ends it
    early, nothing half-made is ever found.

    Raises:
        InvalidInputError: no toolchain has the name.
        OfflineError: it is not there, and offline mode is on.
        DiskFullError: there is not enough room for it.
        MissingDependencyError: no Python of a fitting version is there.
        StoreLockedError: another process has been making it for an hour.
        ToolchainError: the installation failed; the error has the end of its log.

    """
    toolchain = pins.find(name, known)
    tell = progress or (lambda line: None)
    found = locate(name, known=known)
    if found is not None:
        return found
    current = settings.read()
    if current.offline if offline is None else offline:
        raise OfflineError(
            f"The environment for {name} is not there, and making it needs the network.",
            hint="Unset QLANGCHAIN_OFFLINE and HF_HUB_OFFLINE, and call again.",
        )
    path = _root() / toolchain.directory
    with _lock(path, f"making the environment for {name}", tell, cancelled):
        found = _look(path, toolchain)  # another process may have made it meanwhile
        if found.is_usable:
            return found
        _check_disk(toolchain)
        _clear(path)
        log = path.with_name(f"{path.name}.log")
        try:
            fill(path, toolchain, log, tell, cancelled)
            os.replace(log, path / log.name)
            _write_manifest(path, toolchain)
        except BaseException as error:
            _clear(path)
            if isinstance(error, OSError):
                raise _unwritable(error) from error
            raise
    return _look(path, toolchain)


def environments(*, known: Mapping[str, Toolchain] | None = None) -> tuple[Environment, ...]:
    """List each toolchain's environment, whether it is there or not, and those that earlier pins left."""
    known = pins.read() if known is None else known
    root, rows = _root(), []
    for toolchain in known.values():
        named = None
        with contextlib.suppress(MissingDependencyError):  # the listing is how one finds that out
            named = _named(toolchain)
        rows.append(named or _look(root / toolchain.directory, toolchain))
        rows += [
            Environment(toolchain.name, "outdated", python_of(path), path, _size(path))
            for path in _directories(toolchain)
            if path.name != toolchain.directory
        ]
    return tuple(rows)


def remove(name: str, *, known: Mapping[str, Toolchain] | None = None) -> int:
    """Remove all environments of a toolchain, also half-made and outdated ones; return the bytes that became free.

    Raises:
        InvalidInputError: no toolchain has the name.
        ToolchainError: a process is running in one of them, or it cannot be removed.

    """
    toolchain = pins.find(name, known)
    freed = 0
    for path in _directories(toolchain):
        with _lock(path, f"removing the environment for {name}", lambda line: None, None):
            user = _user_of(path)
            if user is not None:
                raise ToolchainError(
                    f"Process {user} is running in the environment for {name}.",
                    hint="End it first, for example by ending the program whose engine it is.",
                )
            size = _size(path)
            _clear(path)
            if path.exists():
                raise ToolchainError(f"{path} cannot be removed.", hint="Check the permissions of what is left in it.")
            freed += size
    for left in (*_root().glob(f"{toolchain.name}-*.log"), *_root().glob(f"{toolchain.name}-*.lock")):
        if _HASH.fullmatch(left.stem.removeprefix(f"{toolchain.name}-")):
            with contextlib.suppress(OSError):
                left.unlink()
    return freed


def _root() -> Path:
    return settings.read().store / "toolchains"


def _variable(toolchain: Toolchain) -> str:
    from dataclasses import fields

    return next(str(f.metadata["variable"]) for f in fields(settings.Settings) if f.name == toolchain.setting)


def _named(toolchain: Toolchain) -> Environment | None:
    python = getattr(settings.read(), toolchain.setting) if toolchain.setting else None
    if python is None:
        return None
    if not python.is_file():
        raise MissingDependencyError(
            f"{_variable(toolchain)} names {python}, which is no file.",
            hint="Name a Python interpreter, such as /path/to/environment/bin/python.",
        )
    return Environment(toolchain.name, "named", python.absolute())


def _directories(toolchain: Toolchain) -> list[Path]:
    start = f"{toolchain.name}-"
    return sorted(
        path for path in _root().glob(f"{start}*") if path.is_dir() and _HASH.fullmatch(path.name.removeprefix(start))
    )


def _look(path: Path, toolchain: Toolchain) -> Environment:
    python = python_of(path)
    try:
        made: Any = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        complete = made["hash"] == toolchain.hash and python.exists()  # its base may have been uninstalled
        created, size = str(made["created"]), int(made["size_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        complete, created, size = False, "", 0
    state: State = "ready" if complete else "incomplete" if path.exists() else "absent"
    return Environment(toolchain.name, state, python, path, size, created)


def _write_manifest(path: Path, toolchain: Toolchain) -> None:
    made = {
        "name": toolchain.name,
        "hash": toolchain.hash,
        "requirements": list(toolchain.requirements),
        "uninstall": list(toolchain.uninstall),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "size_bytes": _size(path),
    }
    partial = path / f"{_MANIFEST}.tmp"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(made, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path / _MANIFEST)


def _clear(path: Path) -> None:
    """Remove an environment, first of all what says that it is one."""
    with contextlib.suppress(OSError):
        (path / _MANIFEST).unlink()
    shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    total = 0
    for directory, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(OSError):
                total += (Path(directory) / file).lstat().st_size
    return total


def _check_disk(toolchain: Toolchain) -> None:
    root = _root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise _unwritable(error) from error
    if free < toolchain.size_bytes:
        raise DiskFullError(
            f"The environment for {toolchain.name} takes up to {toolchain.size_bytes / 1e9:.1f} GB, and {root} has "
            f"{free / 1e9:.1f} GB free.",
            hint="Free some room, or set QLANGCHAIN_HOME elsewhere.",
        )


def _unwritable(error: OSError) -> ToolchainError | DiskFullError:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"The disk of {_root()} is full.", hint="Free some room, or set QLANGCHAIN_HOME elsewhere."
        )
    return ToolchainError(f"{_root()} cannot be written: {error}.", hint="Set QLANGCHAIN_HOME elsewhere.")


@contextlib.contextmanager
def _lock(path: Path, what: str, tell: Progress, cancelled: threading.Event | None) -> Iterator[None]:
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    waited = 0.0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                lock.acquire(timeout=0.5)
                break
            except Timeout:
                if not waited:
                    tell("another process is at work on it; waiting")
                waited += 0.5
                if cancelled is not None and cancelled.is_set():
                    raise ToolchainError(f"{what.capitalize()} was cancelled.", hint="Nothing was begun.") from None
                if waited >= _LOCK_SECONDS:
                    raise StoreLockedError(f"Another process has been {what} for an hour.") from None
    except OSError as error:
        raise _unwritable(error) from error
    try:
        yield
    finally:
        lock.release()


def _user_of(path: Path) -> int | None:
    """The id of a process whose command is an interpreter in there, or None."""
    import psutil

    inside = str(path) + os.sep
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if command[0].startswith(inside):
            return int(process.pid)
    return None
