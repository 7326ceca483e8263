"""Small files written whole or not at all, files hashed in chunks, and what to say where a disk refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qlangchain.errors import ArtifactError, DiskFullError

CHUNK: Final = 4 * 1024 * 1024
NOTE_BYTES: Final = 8 * 1024 * 1024  # the largest JSON file that the store reads; its own are far smaller
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in chunks."""
    sum = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sum.update(chunk)
    return sum.hexdigest()


def git_blob_sum(size: int) -> Any:
    """A SHA-1 that becomes git's blob id of a file of `size` bytes when its bytes are added (git-hash-object)."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def load_json(path: Path, *, limit: int = NOTE_BYTES) -> Any:
    """Read a JSON file of at most `limit` bytes; raises OSError, or ValueError where it is larger or no JSON."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than {limit} bytes")
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; what is missing, damaged, too large or no object is empty."""
    try:
        found = load_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write a JSON object so that readers see the old file or the new one, also after a power cut."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a text file so that readers see the old one or the new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two threads may write the same file, and none may publish what the other is still writing.
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file are on the disk; a writable file is needed on some systems."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    with contextlib.suppress(OSError):  # some systems cannot open a directory; a rename is atomic all the same
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(root: Path, error: OSError) -> ArtifactError:
    """The error for a store that could not be written: `DiskFullError`, or else `ArtifactError`."""
    if error.errno in _FULL:
        return DiskFullError(
            f"The disk of {root} is full.",
            hint="Free some room (`qlangchain cache gc`), or set QLANGCHAIN_HOME elsewhere.",
        )
    return ArtifactError(f"The store at {root} cannot be written: {error}.", hint="Set QLANGCHAIN_HOME elsewhere.")
