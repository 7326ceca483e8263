"""Blobs: bytes under their SHA-256, published whole or not at all, and trusted only while they look untouched."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import stat
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from qlangchain.artifacts import locks
from qlangchain.artifacts.atomic import CHUNK, read_json, sha256, sync_directory, sync_file, unwritable, write_json
from qlangchain.errors import ArtifactError, CorruptFileError, UnsafeSourceError

logger = logging.getLogger(__name__)

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT: Final = re.compile(r"[0-9a-f]{40}")
_READ_ONLY: Final = 0o444

Stamp = list[int]

# Files hashed by this process, with their stamps: in a store that cannot be written there is nowhere else to note it.
_hashed: dict[Path, tuple[Stamp, str]] = {}


class Blobs:
    """The bytes of the store at `root`; any number of threads and processes may use it at once."""

    def __init__(self, root: Path) -> None:
        """Nothing is created before it is needed."""
        self.root = root

    def blob(self, digest: str, *, afresh: bool = False) -> Path | None:
        """Return the path of the blob with this SHA-256 (64 hex digits), or None where there is none.

        Its bytes were hashed when it was published. While its size in bytes, its time in ns, its inode and its
        mode are the same they are not read again; else, or with `afresh`, they are, and a blob that has changed
        goes to quarantine.
        """
        path = self.path_of(digest)
        for _ in range(3):  # another process may replace it while it is hashed
            try:
                before = stamp(path)
                if not afresh and self._noted(path, before) == digest:
                    return path
                found = sha256(path)
                if stamp(path) != before:
                    continue
            except OSError:
                return None
            if found == digest:
                with contextlib.suppress(OSError):  # not ours to change, or a store that cannot be written
                    path.chmod(_READ_ONLY)
                self._note(path, digest)
                return path
            with contextlib.suppress(ArtifactError):  # a store that cannot be written: at least it is not used
                self.quarantine(path, f"its bytes have the SHA-256 {found}")
            return None
        return None

    def known(self, digest: str) -> Path | None:
        """Like `blob`, also for git's blob id (40 hex digits) of a file that was published together with one."""
        if not isinstance(digest, str) or len(digest) != 40:
            return self.blob(digest)
        found = read_json(self._git(digest)).get("sha256")
        return self.blob(found) if isinstance(found, str) and _SHA256.fullmatch(found) else None

    def path_of(self, digest: str) -> Path:
        """Where the blob with this SHA-256 is or would be; raises UnsafeSourceError where it is none."""
        return self.root / "blobs" / _checked(digest, _SHA256)

    def partial(self, digest: str) -> Path:
        """Where the bytes of a blob are gathered until it is whole; its directory is there.

        It is named by the digest (SHA-256 or git's), so that the next process goes on where this one ended. Who
        writes it holds the lock of the same name; `gc` takes that for the sign that it is in use.
        """
        path = self.root / "partial" / _checked(digest, _SHA256, _GIT)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.root, error) from error
        return path

    def lock(self, name: str, *, what: str, timeout: float) -> AbstractContextManager[None]:
        """Hold the lock `name` of this store; see `locks.hold`. `what` is such as "fetching model.gguf".

        Raises StoreLockedError, which names the holder, after `timeout` seconds.
        """
        return locks.hold(self.root / "locks", name, what=what, timeout=timeout)

    def publish_blob(self, partial: Path, sha256: str, *, also: str | None = None, shared: bool = False) -> Path:
        """Make a file, whose bytes the caller has just hashed, the blob of that digest; returns its new path.

        It becomes read-only and is renamed into place, so that nobody ever sees half of it. `also` is git's blob
        id, by which `known` finds it later. Where that blob is there already, `partial` is removed. A file that has
        other names is copied, since it could be changed under those, unless `shared` allows that.

        Raises:
            DiskFullError, ArtifactError: the disk refuses.
            UnsafeSourceError: a digest is no digest, or `partial` is no regular file.

        """
        target = self.path_of(sha256)
        git = None if also is None else self._git(also)
        try:
            if self.blob(sha256):
                partial.unlink(missing_ok=True)
            else:
                if not shared:
                    own_inode(partial)
                    partial.chmod(0o644)
                    sync_file(partial)
                partial.chmod(_READ_ONLY)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial, target)
                sync_directory(target.parent)
                self._note(target, sha256)
        except OSError as error:
            raise unwritable(self.root, error) from error
        if git:
            with contextlib.suppress(OSError):  # without it the file is found by its SHA-256 only
                write_json(git, {"sha256": sha256})
        return target

    def quarantine(self, path: Path, why: str) -> None:
        """Move a file of the store out of use, with a note of the reason; where it cannot be moved, remove it.

        Raises ArtifactError where it can be neither.
        """
        aside = self.root / "quarantine" / f"{path.name}.{time.time_ns()}"
        logger.warning("%s is set aside: %s", path, why)
        try:
            try:
                aside.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, aside)
            except FileNotFoundError:
                return
            except OSError:
                path.unlink(missing_ok=True)
                return
        except OSError as error:
            raise unwritable(self.root, error) from error
        with contextlib.suppress(OSError):
            write_json(aside.with_name(f"{aside.name}.why.json"), {"path": str(path), "why": why})

    def free_bytes(self) -> int:
        """The bytes that this user may still write on the disk of the store."""
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(existing).free

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of any file in hex, remembered as long as the file looks untouched.

        Raises:
            CorruptFileError: the file cannot be read to its end.

        """
        path = path.resolve()
        try:
            before = stamp(path)
            known = self._noted(path, before)
            if known:
                return known
            digest = sha256(path)
            if stamp(path) == before:  # else it is being written to, and nothing is worth remembering
                self._note(path, digest)
        except OSError as error:
            raise CorruptFileError(f"{path} cannot be read: {error.strerror}.", hint="Check the file.") from error
        return digest

    def _note(self, path: Path, digest: str) -> None:
        """Remember the digest of a file as it is now. A store that cannot be written costs time, not correctness."""
        now = stamp(path)
        _hashed[path] = (now, digest)
        with contextlib.suppress(OSError):
            write_json(self._note_of(path), {"path": self._inside(path), "stamp": now, "sha256": digest})

    def _noted(self, path: Path, now: Stamp) -> str | None:
        known = _hashed.get(path)
        if known and known[0] == now:
            return known[1]
        note = read_json(self._note_of(path))
        digest = note.get("sha256")
        if note.get("stamp") == now and isinstance(digest, str) and _SHA256.fullmatch(digest):
            _hashed[path] = (now, digest)
            return digest
        return None

    def _note_of(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(self._inside(path))).hexdigest()[:32]
        return self.root / "digests" / f"{name}.json"

    def _inside(self, path: Path) -> str:
        # What lies in the store is noted by its place there, so that a store can be moved.
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def _git(self, digest: str) -> Path:
        return self.root / "git" / f"{_checked(digest, _GIT)}.json"


def stamp(path: Path) -> Stamp:
    """What changes when a file is replaced or written to: size in bytes, time in ns, inode, mode.

    Raises FileNotFoundError for what is no regular file: a link in the place of a blob is no blob.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(f"{path} is no regular file")
    return [found.st_size, found.st_mtime_ns, found.st_ino, stat.S_IMODE(found.st_mode)]


def own_inode(path: Path) -> None:
    """Give a file an inode of its own: bytes that another name leads to can be changed under that name."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeSourceError(f"{path.name} is no regular file.", hint="Only regular files are published.")
    if found.st_nlink == 1:
        return
    copy = path.with_name(f"{path.name}.copy")
    with path.open("rb") as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK)
    os.replace(copy, path)


def _checked(digest: str, *kinds: re.Pattern[str]) -> str:
    if not isinstance(digest, str) or not any(kind.fullmatch(digest) for kind in kinds):
        raise UnsafeSourceError(
            f"{str(digest)[:80]!r} is no digest.", hint="Expected 64 hex digits (SHA-256) or 40 (git), in lower case."
        )
    return digest
