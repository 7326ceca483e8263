"""Writing GGUF: the encoding of the header, and publishing a file atomically.

The format is small (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), and writing it here keeps
the tensors streaming: the sizes of all of them are known before the first is read.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qlangchain.artifacts.headers import GGML_TYPES
from qlangchain.artifacts.locks import hold
from qlangchain.errors import (
    ArtifactError,
    CorruptFileError,
    DiskFullError,
    InvalidInputError,
    ProductionError,
    StoreLockedError,
)

ALIGNMENT = 32
_TYPES = {name: (number, block, size) for number, (name, block, size) in GGML_TYPES.items()}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """One tensor to be written: `shape` with rows first (as in numpy), `type` by its ggml name."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def nbytes(self) -> int:
        """Its size in bytes, without padding."""
        _, block, size = _TYPES[self.type]
        values = 1
        for length in self.shape:
            values *= length
        return values // block * size


def uint32(value: int) -> bytes:
    """A metadata value: an unsigned integer of four bytes."""
    return struct.pack("<II", 4, value)


def float32(value: float) -> bytes:
    """A metadata value: a float of four bytes."""
    return struct.pack("<If", 6, value)


def boolean(value: bool) -> bytes:
    """A metadata value: one byte, 0 or 1."""
    return struct.pack("<I?", 7, value)


def string(value: str) -> bytes:
    """A metadata value: UTF-8 with its length before it."""
    return struct.pack("<I", 8) + _text(value)


def strings(values: Sequence[str]) -> bytes:
    """A metadata value: an array of strings."""
    return struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(_text, values))


def uint32s(values: Sequence[int]) -> bytes:
    """A metadata value: an array of unsigned integers of four bytes."""
    return struct.pack(f"<IIQ{len(values)}I", 9, 4, len(values), *values)


def int32s(values: Sequence[int]) -> bytes:
    """A metadata value: an array of signed integers of four bytes."""
    return struct.pack(f"<IIQ{len(values)}i", 9, 5, len(values), *values)


def float32s(values: Sequence[float]) -> bytes:
    """A metadata value: an array of floats of four bytes."""
    return struct.pack(f"<IIQ{len(values)}f", 9, 6, len(values), *values)


def _text(value: str) -> bytes:
    try:
        raw = value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half a character
        raise CorruptFileError(f"{value[:40]!r} is not text.", hint="Download the model again.") from None
    return struct.pack("<Q", len(raw)) + raw


def encode_header(metadata: Mapping[str, bytes], tensors: Iterable[TensorLayout]) -> bytes:
    """The file up to its first tensor, padded. Values of `metadata` come from the functions above."""
    tensors = list(tensors)
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), value]
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]  # GGUF lists the columns first
        parts += [_text(tensor.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        parts += [struct.pack("<IQ", _TYPES[tensor.type][0], offset)]
        offset += tensor.nbytes + padding(tensor.nbytes)
    header = b"".join(parts)
    return header + bytes(padding(len(header)))


def padding(size: int) -> int:
    """The zero bytes that follow `size` bytes, up to the next multiple of the alignment."""
    return -size % ALIGNMENT


def check_room(directory: Path, size: int) -> None:
    """Raise `DiskFullError` where `directory` has not `size` bytes left."""
    free = shutil.disk_usage(directory).free
    if free < size:
        raise DiskFullError(
            f"{size:,} bytes are needed in {directory}, and {free:,} are free.",
            hint="Free some disk, choose a smaller format, or write to another disk.",
        )


@contextmanager
def workroom(target: Path) -> Iterator[Path]:
    """Yield a hidden directory beside the file `target`, empty, for one process at a time.

    It is removed at the end, and what a kill left in it at the next beginning. Raises `StoreLockedError` where
    another process makes the same file, and `InvalidInputError`.
    """
    if target.is_dir():
        raise InvalidInputError(f"{target} is a directory.", hint="Pass the path of the file to write.")
    room = target.with_name(f".{target.name}.making")
    try:
        with hold(room, "work", what=f"making {target.name}", timeout=1.0):
            for path in room.iterdir():
                if path.name not in ("work.lock", "work.holder"):
                    path.unlink()
            yield room
            shutil.rmtree(room, ignore_errors=True)  # while it is locked, so that nobody else has begun in it
    except StoreLockedError:
        raise
    except BaseException:
        shutil.rmtree(room, ignore_errors=True)
        raise


def clear(target: Path) -> None:
    """Remove what a kill left of making the file `target`, unless somebody is at it."""
    if target.with_name(f".{target.name}.making").is_dir():
        with suppress(ArtifactError), workroom(target):
            pass


@contextmanager
def published(target: Path, size: int, verify: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a temporary path beside `target`; what is written there becomes `target` when the block ends well.

    `size` is the number of bytes to come (asked of the disk before), `verify` is called with the finished
    file before it is renamed. However the block ends otherwise, an exception or Ctrl-C, the temporary file is
    removed and `target` stays as it was. Raises `DiskFullError`, `ProductionError`, and what `verify` and
    `workroom` raise.
    """
    with workroom(target) as room, moved(room / "out.gguf", target, size, verify) as temporary:
        yield temporary


@contextmanager
def moved(temporary: Path, target: Path, size: int, verify: Callable[[Path], object]) -> Iterator[Path]:
    """Like `published`, for a path in a workroom that is open already."""
    try:
        check_room(target.parent, size)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        verify(temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"The disk of {target} is full; nothing was written.", hint="Free some disk and call again."
            ) from error
        raise ProductionError(f"{target} could not be written: {error}.", hint="Nothing was left behind.") from error
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    """Make the rename itself survive a power failure, where the platform lets directories be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse; the file itself is already synced
        pass
    finally:
        os.close(descriptor)
