"""The file in which the bytes of a blob gather until it is whole.

It is always a clean beginning of the blob: bytes are only ever appended, so that any process can go on with what
another has left, however that ended.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from qlangchain.artifacts.atomic import unwritable

_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class DisturbedError(Exception):
    """Another program has cut or lengthened a partial file while it was written."""


class Partial:
    """An open partial file. Whoever opens it holds the lock of its digest.

    Every method raises DiskFullError where the disk is full, and ArtifactError where it refuses otherwise.
    `is_disturbed` tells whether something else than this object may have written to it, so that what was hashed on its
    way here need not be what lies here.
    """

    def __init__(self, path: Path, root: Path) -> None:
        """`root` is the store's, for messages. What is no regular file at `path` is removed."""
        self._root, self._path = root, path
        self._disturbed = False
        with self._disk():
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode):
                    path.unlink()
                elif not found.st_mode & stat.S_IWUSR:
                    path.chmod(0o644)  # whole and read-only: its process ended just before publishing it
            self._descriptor = os.open(path, _FLAGS, 0o644)
            self._last = self._change()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._disk():
            os.close(self._descriptor)

    def size(self) -> int:
        """The bytes that it holds."""
        with self._disk():
            return os.fstat(self._descriptor).st_size

    def read_at(self, position: int, into: memoryview) -> int:
        """Read from `position` on; returns how many bytes."""
        with self._disk():
            os.lseek(self._descriptor, position, os.SEEK_SET)
            return os.readv(self._descriptor, [into]) if hasattr(os, "readv") else self._read(into)

    def _read(self, into: memoryview) -> int:
        content = os.read(self._descriptor, len(into))
        into[: len(content)] = content
        return len(content)

    def append(self, piece: memoryview, *, at: int) -> None:
        """Write `piece` at the end, which is at byte `at`; where the disk fails, nothing but a part of it is added.

        Raises DisturbedError where the end is elsewhere.
        """
        with self._disk():
            if self._look().st_size != at:
                raise DisturbedError
            os.lseek(self._descriptor, at, os.SEEK_SET)
            while piece:
                piece = piece[os.write(self._descriptor, piece) :]
            self._last = self._change()

    @property
    def is_disturbed(self) -> bool:
        """Whether its time has changed in between, or its name leads elsewhere."""
        with self._disk():
            found = self._look()
            try:
                named = self._path.lstat()
            except FileNotFoundError:
                return True
            return self._disturbed or (named.st_ino, named.st_dev) != (found.st_ino, found.st_dev)

    def stamp(self) -> list[int]:
        """What changes when it is replaced or written to: size in bytes, time in ns, inode."""
        with self._disk():
            found = os.fstat(self._descriptor)
            return [found.st_size, found.st_ctime_ns, found.st_ino]

    def _look(self) -> os.stat_result:
        found = os.fstat(self._descriptor)
        self._disturbed |= found.st_ctime_ns != self._last
        return found

    def _change(self) -> int:
        return os.fstat(self._descriptor).st_ctime_ns

    def truncate(self, size: int) -> None:
        """Cut it to `size` bytes."""
        with self._disk():
            os.ftruncate(self._descriptor, size)
            self._last = self._change()

    def touch(self) -> None:
        """Set its time to now, for those who watch it."""
        with contextlib.suppress(OSError):
            os.utime(self._descriptor)
            self._last = self._change()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self._root, error) from error


def signs_of_life(path: Path) -> tuple[int, int]:
    """What changes while someone works on a partial file: its size in bytes and its time in ns; zeros without one."""
    try:
        found = path.lstat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
