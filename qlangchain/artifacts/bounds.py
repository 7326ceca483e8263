"""What the two header readers share: a cursor that holds little of a file, limits, and words for what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

from qlangchain.errors import CorruptFileError, ModelNotFoundError

DOWNLOAD_AGAIN = "Delete the file and download it again; compare its size and sha256 with the source's listing."
MAX_SECONDS = 1.5  # of the CPU time of the thread, so that a busy machine does not make a good file a bad one
MAX_TEXT = 24 << 20  # bytes of names and values that are kept; as Python strings they may take four times as much
_FIRST, _LARGEST = 1 << 20, 8 << 20  # bytes that are read at once: doubled, because most headers are short

Read = Callable[[int, int], bytes]
"""Gives the bytes of a file from `start` up to `stop`, exactly so many."""


class Cursor:
    """A place in a file that moves forward, and the few MiB around it that are in memory.

    `size` is the file's size and `limit` where the header must have ended, both in bytes. It knows no format. It
    holds the header to its budget of text and of time, whichever way the bytes come.
    """

    def __init__(self, path: Path, read: Read, size: int, limit: int) -> None:
        self.path, self.size, self.limit = path, size, min(size, limit)
        self.at = self.base = 0  # the place, and where `data` begins
        self.data = b""
        self._read, self._step, self._text = read, _FIRST, 0
        self._began = time.thread_time()

    @property
    def left(self) -> int:
        """Bytes between the place and the limit."""
        return self.limit - self.at

    def need(self, size: int) -> int:
        """Have `size` bytes from the place on in `data`, and return where there they begin; the caller keeps the limit.

        Raises:
            CorruptFileError: the header ends before that, or reading it takes too long.

        """
        if self.at + size > self.limit:
            self.fail_short()
        if not self.base <= self.at <= self.at + size <= self.base + len(self.data):
            self.check_time()
            held = self.data[self.at - self.base :] if self.at >= self.base else b""
            begin = self.at + len(held)
            end = min(max(self.at + size, begin + self._step), self.limit)
            self._step = min(self._step * 2, _LARGEST)
            self.data = held + self._read(begin, end)
            self.base = self.at
        return self.at - self.base

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes and move behind them."""
        begin = self.need(size)
        self.at += size
        return self.data[begin : begin + size]

    def keep(self, size: int) -> None:
        """Note that `size` bytes of text will stay in memory."""
        self._text += size
        if self._text > MAX_TEXT:
            corrupt(self.path, f"its header holds more than {MAX_TEXT:,} bytes of text")

    def check_time(self) -> None:
        """Give up on a header that takes more than `MAX_SECONDS` to read."""
        if time.thread_time() - self._began > MAX_SECONDS:
            corrupt(self.path, f"reading its header takes more than {MAX_SECONDS:g} s")

    def fail_short(self) -> NoReturn:
        """Say that the header should go on where it cannot."""
        if self.limit < self.size:
            corrupt(self.path, f"its header is longer than {self.limit:,} bytes")
        corrupt(self.path, f"it is truncated inside the header, after {self.size:,} bytes")


def open_file(path: Path) -> BinaryIO:
    """Open `path` for reading; raises `ModelNotFoundError` or `CorruptFileError` where that cannot be."""
    if not path.exists():
        raise ModelNotFoundError(f"There is no file {path}.", hint="Check the path.")
    if not path.is_file():
        corrupt(path, "it is a directory, not a file", "Pass the path of the file itself.")
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be opened: {error.strerror}.", hint="Check its permissions.") from None


def reader(path: Path, file: BinaryIO) -> Read:
    """Read ranges of an open file; not mapped into memory, where a file that shrinks would end the process."""

    def read(start: int, stop: int) -> bytes:
        try:
            file.seek(start)
            data = file.read(stop - start)
        except OSError as error:
            corrupt(path, f"it cannot be read: {error.strerror}", "Check the disk that it lies on.")
        if len(data) != stop - start:
            corrupt(path, "it has become shorter since it was opened")
        return data

    return read


def describe(head: bytes) -> str:
    """What a file that should be a model is instead, told from its first bytes."""
    text = head.lstrip().lower()
    if not head:
        return "empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (HTML)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, the stand-in for a file that was not fetched"
    if head[:2] == b"PK":
        return "a zip archive (a PyTorch checkpoint?)"
    if head[:4] in (b"ggml", b"lmgg", b"fmgg", b"tjgg"):
        return "a file in the GGML format of before August 2023"
    if head[:4] == b"GGUF":
        return "GGUF"
    if all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        return f"text that begins with {short(head.decode('utf-8', 'replace'))}"
    return "something else"


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`, both in bytes."""
    return -(-size // alignment) * alignment


def short(value: object) -> str:
    """`repr(value)` in at most 80 characters, for messages about untrusted names."""
    text = repr(value[:200] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def corrupt(path: Path, what: str, hint: str = DOWNLOAD_AGAIN) -> NoReturn:
    """Raise the `CorruptFileError` for the file at `path`."""
    raise CorruptFileError(f"{path.name} cannot be used: {what}.", hint=hint)
