"""What the two header readers share: opening a file, saying what is wrong with it, telling what it is instead."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import BinaryIO, NoReturn

from qlangchain.errors import CorruptFileError, ModelNotFoundError

DOWNLOAD_AGAIN = "Delete the file and download it again; compare its size and sha256 with the source's listing."


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


def map_file(path: Path, file: BinaryIO) -> mmap.mmap:
    """The bytes of an open file, mapped into memory."""
    if path.stat().st_size == 0:
        corrupt(path, "it is empty")
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


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
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def corrupt(path: Path, what: str, hint: str = DOWNLOAD_AGAIN) -> NoReturn:
    """Raise the `CorruptFileError` for the file at `path`."""
    raise CorruptFileError(f"{path.name} cannot be used: {what}.", hint=hint)
