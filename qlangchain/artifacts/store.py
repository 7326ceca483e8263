"""The store: artifacts under the SHA-256 of their bytes, published whole or not at all.

<store>/blobs/<sha256>.gguf    the bytes, read-only
<store>/made/<key>.json        which blob was made from what; written last, so that it never points at less
<store>/digests/<hash>.json    digests of files elsewhere, remembered while size, time and inode agree
<store>/partial/<key>/         work in progress; left by a kill, removed by the next try
<store>/quarantine/            blobs whose bytes changed after they were published
<store>/locks/                 one lock per key
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from qlangchain.errors import ArtifactError, CorruptFileError, DiskFullError

logger = logging.getLogger(__name__)

_CHUNK: Final = 4 * 1024 * 1024
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LOCK_SECONDS: Final = 3600.0  # making an artifact takes minutes; who waits longer waits for a stopped process


class Store:
    """A directory of artifacts that any number of threads and processes may use at once."""

    def __init__(self, root: Path) -> None:
        """Nothing is created before it is needed."""
        self.root = root

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file in hex, remembered as long as the file looks untouched.

        Raises:
            CorruptFileError: the file cannot be read to its end.

        """
        path = path.resolve()
        try:
            stamp = _stamp(path)
            note = self._note(path)
            known = _read_json(note)
            if known.get("stamp") == stamp and isinstance(known.get("sha256"), str):
                return str(known["sha256"])
            digest = sha256(path)
        except OSError as error:
            raise CorruptFileError(f"{path} cannot be read: {error.strerror}.", hint="Check the file.") from error
        with contextlib.suppress(OSError):  # a store that cannot be written costs time, not correctness
            _write_json(note, {"path": str(path), "stamp": stamp, "sha256": digest})
        return digest

    def _note(self, path: Path) -> Path:
        return self.root / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"

    def find(self, key: str) -> tuple[Path, str] | None:
        """Return (path, digest) of what was made under `key`, or None where it is missing or its bytes changed."""
        manifest = self._manifest(key)
        made = _read_json(manifest)
        digest = made.get("sha256")
        if not isinstance(digest, str):
            return None
        blob = self._blob(digest)
        try:
            stamp = _stamp(blob)
            if stamp != made.get("stamp"):
                if sha256(blob) != digest:
                    return None
                # Copied or touched, and whole: the next call need not read it all again.
                with contextlib.suppress(OSError):
                    _write_json(manifest, {**made, "stamp": stamp})
        except OSError:
            return None
        return blob, digest

    def make(self, key: str, about: Mapping[str, Any], write: Callable[[Path], object]) -> tuple[Path, str]:
        """Return what is stored under `key`; where there is nothing, have `write` fill a file and publish it.

        `about` goes into the manifest. Other processes that want the same key wait for the first. When `write`
        raises, or the process is killed, nothing is published.

        Raises:
            DiskFullError: the disk is full; the half-written file is gone.
            ArtifactError: another process has held the lock for an hour.

        """
        found = self.find(key)  # without the lock: a store that cannot be written gives what it has
        if found:
            return found
        with self._lock(key):
            found = self.find(key)
            if found:
                return found
            self._set_aside(key)
            partial = self.root / "partial" / key
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir(parents=True)
                target = partial / "artifact.gguf"
                write(target)
                return self._publish(key, target, about)
            except OSError as error:
                raise self._unwritable(error) from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _set_aside(self, key: str) -> None:
        """Move what is no longer what was published out of the way. The caller holds the lock."""
        digest = _read_json(self._manifest(key)).get("sha256")
        blob = self._blob(str(digest))
        if not blob.exists():
            return
        logger.warning("%s does not hold what was published; it is set aside and made anew", blob.name)
        quarantine = self.root / "quarantine"
        try:
            quarantine.mkdir(parents=True, exist_ok=True)
            os.replace(blob, quarantine / f"{blob.name}.{os.getpid()}")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ArtifactError:
        if error.errno in _FULL:
            return DiskFullError(
                f"The disk of {self.root} is full.", hint="Free some room, or set QLANGCHAIN_HOME elsewhere."
            )
        return ArtifactError(
            f"The store at {self.root} cannot be written: {error}.", hint="Set QLANGCHAIN_HOME elsewhere."
        )

    def _publish(self, key: str, target: Path, about: Mapping[str, Any]) -> tuple[Path, str]:
        digest = sha256(target)
        with target.open("rb+") as file:
            os.fsync(file.fileno())
        target.chmod(0o444)
        blob = self._blob(digest)
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.replace(target, blob)
        _sync_directory(blob.parent)
        stamp = _stamp(blob)
        _write_json(self._manifest(key), {**about, "sha256": digest, "stamp": stamp})
        return blob, digest

    def _manifest(self, key: str) -> Path:
        return self.root / "made" / f"{key}.json"

    def _blob(self, digest: str) -> Path:
        return self.root / "blobs" / f"{digest}.gguf"

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        path = self.root / "locks" / f"{key}.lock"
        lock, holder = FileLock(path), path.with_suffix(".holder")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            pid = _read_json(holder).get("pid", "unknown")
            raise ArtifactError(
                f"Process {pid} has been making the same artifact for an hour.",
                hint="If it hangs, end it and call again.",
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            with contextlib.suppress(OSError):  # it only names who is at work
                _write_json(holder, {"pid": os.getpid()})
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in chunks."""
    sum = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sum.update(chunk)
    return sum.hexdigest()


def _stamp(path: Path) -> list[int]:
    """What changes when a file is replaced or written to: size in bytes, time in ns, inode."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two threads may write the same note, and none may publish what the other is still writing.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    with contextlib.suppress(OSError):  # some systems cannot open a directory; the rename itself is still atomic
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
