"""Files that lie in the Hugging Face cache already, taken into the store instead of being fetched again.

That cache is never trusted: what the client there fetches over plain HTTP it does not hash, and its files can be
changed through the names that its snapshots give them. So the bytes are hashed, and they are hashed in a file of
our own: a clone where the file system can share blocks until they change (Btrfs, XFS), else a copy. Only where
the disk has no room for a copy does the store share the inode of a file that belongs to the same user, which is
made read-only first; a later change through the cache's name then shows in the stamp that `Blobs.blob` compares.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qlangchain.artifacts.atomic import CHUNK, git_blob_sum
from qlangchain.errors import QlangchainError

if TYPE_CHECKING:
    from qlangchain.artifacts.blobs import Blobs

logger = logging.getLogger(__name__)

_FICLONE: Final = 0x40049409  # ioctl_ficlone(2)
_SPARE: Final = 256 * 1024 * 1024  # bytes that a copy leaves free on the disk


def hub_cache(environ: Mapping[str, str] | None = None) -> Path:
    """The directory of the Hugging Face cache, as its client finds it."""
    env = os.environ if environ is None else environ
    if env.get("HF_HUB_CACHE"):
        return Path(env["HF_HUB_CACHE"]).expanduser()
    if env.get("HF_HOME"):
        return Path(env["HF_HOME"]).expanduser() / "hub"
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def adopt(blobs: Blobs, digest: str, size: int, *, cache: Path | None = None) -> Path | None:
    """Publish a file of the Hugging Face cache that has this digest (SHA-256 or git's) and size in bytes.

    Returns the blob's path, or None where there is no such file or it cannot be taken. The caller holds the lock
    of the digest.
    """
    known = blobs.known(digest)
    if known:
        return known
    target = blobs.partial(digest)
    own = target.with_name(f"{digest}.adopt-{os.getpid()}-{threading.get_ident()}")
    for source in _candidates(hub_cache() if cache is None else cache, digest, size):
        try:
            found = _take(blobs, source, own, size)
            if digest not in found:
                logger.warning("%s does not hold what its name says; it is not used", source)
                continue
            also = digest if len(digest) == 40 else None
            return blobs.publish_blob(own, found[0], also=also, shared=own.stat().st_nlink > 1)
        except (OSError, QlangchainError) as error:
            logger.info("%s cannot be used: %s", source, error)
        finally:
            with contextlib.suppress(OSError):
                own.unlink(missing_ok=True)
    return None


def _candidates(cache: Path, digest: str, size: int) -> Iterator[Path]:
    """Files that may hold it: first those named by the digest, then copies in snapshots, which the size picks out."""
    repositories = _entries(cache, "models--")
    for repository in repositories:
        path = repository / "blobs" / digest
        if _fits(path, size):
            yield path
    for repository in repositories:  # without symbolic links the client puts the file itself there
        for directory, _, names in os.walk(repository / "snapshots"):
            for name in names:
                path = Path(directory, name)
                if not path.is_symlink() and _fits(path, size):
                    yield path


def _fits(path: Path, size: int) -> bool:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _take(blobs: Blobs, source: Path, own: Path, size: int) -> tuple[str, str]:
    """Fill `own` with the bytes of `source`; returns the SHA-256 and git's digest of what is in `own` then."""
    with source.open("rb") as reading:
        own.unlink(missing_ok=True)
        if _clone(reading.fileno(), own):
            return _digests(own, size)
        if blobs.free_bytes() >= size + _SPARE:
            sums = hashlib.sha256(), git_blob_sum(size)
            with own.open("xb") as writing:
                while chunk := reading.read(CHUNK):
                    writing.write(chunk)
                    for sum in sums:
                        sum.update(chunk)
            return sums[0].hexdigest(), sums[1].hexdigest()
    if source.stat().st_uid != getattr(os, "geteuid", lambda: -1)():
        raise OSError(errno.ENOSPC, "no room for a copy, and it belongs to another user")
    os.link(source.resolve(), own)
    own.chmod(0o444)  # before it is hashed: nobody begins to write to it any more
    return _digests(own, size)


def _clone(source: int, own: Path) -> bool:
    """Whether `own` shares the blocks of the file `source` now, each to be copied when either is written to."""
    if sys.platform != "linux":
        return False
    import fcntl

    with own.open("xb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), _FICLONE, source)
        except OSError:
            own.unlink()
            return False
    return True


def _digests(path: Path, size: int) -> tuple[str, str]:
    sums = hashlib.sha256(), git_blob_sum(size)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for sum in sums:
                sum.update(chunk)
    return sums[0].hexdigest(), sums[1].hexdigest()


def _entries(directory: Path, prefix: str) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.name.startswith(prefix))
    except OSError:
        return []
