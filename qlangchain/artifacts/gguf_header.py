"""A bounded reader of GGUF headers: see `headers.py` for why, and `docs/gguf.md` of ggml for the format.

Limits of strings, arrays and dimensions are Ollama's; the others leave the largest known headers (0.3 Mi tokens,
0.6 Mi merges, 12 MB) several times as much room.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, overload

from qlangchain.artifacts.bounds import Cursor, Read, corrupt, describe, open_file, padded, reader, short

MAX_STRING = 16 << 20
MAX_ARRAY = 64 << 20
MAX_STRINGS = 4 << 20  # in all arrays together: the largest vocabularies have 0.3 Mi tokens and 0.6 Mi merges
MAX_READ = 32 << 20  # bytes, and
MAX_ITEMS = 1 << 20  # items of an array that is taken into memory, as lists of Python objects
MAX_ENTRIES = 1 << 16
MAX_HEADER = 256 << 20
MAX_DIMS = 4
MAX_NAME = 63  # GGML_MAX_NAME counts the final zero byte

# ggml's tensor types: number -> (name, values in a block, bytes of a block); source: ggml.h, gguf/constants.py.
GGML_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

# Metadata types: number -> struct code. 7 is a bool of one byte, 8 a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `shape` in ggml's order (columns first), `offset` in bytes from the file's beginning."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufArray(Sequence[Any]):
    """An array of the metadata, read from the file again when an item is asked for.

    A vocabulary has 150,000 tokens that most callers never look at, so reading a header only steps over it. `source`
    reads a file that is elsewhere; without it the file is at `path`.
    """

    path: Path
    type: int
    length: int
    offset: int
    nbytes: int
    source: Read | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.length

    @property
    def holds_strings(self) -> bool:
        """Whether the items are strings."""
        return self.type == _STRING

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.read()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.read())

    def read_bytes(self) -> list[bytes]:
        """The items of an array of strings as they stand in the file, which need not be UTF-8."""
        if self.type != _STRING:
            raise TypeError("this array does not hold strings")
        blob, items, at = self._blob(), [], 0
        for _ in range(self.length):
            size = int.from_bytes(blob[at : at + 8], "little")
            items.append(blob[at + 8 : at + 8 + size])
            at += 8 + size
        if at != self.nbytes:
            corrupt(self.path, "it has changed since its header was read")
        return items

    def read(self) -> list[Any]:
        """All items; bytes of a string that are not UTF-8 become U+FFFD."""
        if self.type == _STRING:
            return [item.decode("utf-8", "replace") for item in self.read_bytes()]
        values = list(struct.unpack(f"<{self.length}{_SCALARS[self.type]}", self._blob()))
        return [bool(value) for value in values] if self.type == 7 else values

    def _blob(self) -> bytes:
        if self.length > MAX_ITEMS or self.nbytes > MAX_READ:
            corrupt(self.path, f"an array of {self.length:,} items in {self.nbytes:,} bytes is too long to be read")
        if self.source:
            return self.source(self.offset, self.offset + self.nbytes)
        with open_file(self.path) as file:
            return reader(self.path, file)(self.offset, self.offset + self.nbytes)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself. `data_offset` and `file_size` are in bytes."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    file_size: int
    alignment: int

    @property
    def architecture(self) -> str:
        """The value of `general.architecture`, or an empty string."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    def get(self, name: str, default: Any = None) -> Any:
        """A value under the architecture's own prefix: `get("block_count")` reads `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{name}", default)


def read_gguf_header(path: str | Path) -> GgufHeader:
    """Read and check the header of the GGUF file at `path`.

    Raises `CorruptFileError` where the file is truncated, damaged or not GGUF, `ModelNotFoundError` where it
    is not there. Takes about 0.1 s for a vocabulary of 150,000 tokens.
    """
    path = Path(path)
    with open_file(path) as file:
        return parse_gguf_header(path, reader(path, file), file.seek(0, 2))


def parse_gguf_header(path: Path, read: Read, size: int, source: Read | None = None) -> GgufHeader:
    """Parse the header of a file of `size` bytes that `read` gives the ranges of; `path` names it in messages.

    Its arrays are read again through `source`, or from `path` where that is None. Raises `CorruptFileError`.
    """
    return _GgufParser(Cursor(path, read, size, MAX_HEADER), source).parse()


class _GgufParser:
    """One walk through the header; `strings` counts the items of string arrays."""

    def __init__(self, cursor: Cursor, source: Read | None) -> None:
        self.cursor, self.path, self.size, self.source = cursor, cursor.path, cursor.size, source
        self.strings = 0

    def parse(self) -> GgufHeader:
        version, tensor_count, entry_count = self._preamble()
        metadata: dict[str, Any] = {}
        for number in range(entry_count):
            if number % 1024 == 0:
                self.cursor.check_time()
            key = self._name("a key", 65535)
            if key in metadata:
                self._fail(f"the key {short(key)} occurs twice")
            metadata[key] = self._value(key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            self._fail(f"general.alignment is {short(alignment)}, expected a power of two")
        tensors = self._tensors(tensor_count, alignment)
        return GgufHeader(self.path, version, metadata, tensors, self._data_offset(alignment), self.size, alignment)

    def _data_offset(self, alignment: int) -> int:
        return padded(self.cursor.at, alignment)

    def _tensors(self, count: int, alignment: int) -> tuple[GgufTensor, ...]:
        rows = []
        for number in range(count):
            if number % 1024 == 0:
                self.cursor.check_time()
            rows.append(self._tensor())
        start = self._data_offset(alignment)
        tensors, expected, seen = [], 0, set()
        for name, shape, kind, offset, nbytes in rows:
            if name in seen:
                self._fail(f"the tensor {short(name)} occurs twice")
            seen.add(name)
            if offset != expected:  # llama.cpp asks for the same: no gaps, no overlaps, file order
                self._fail(f"the tensor {short(name)} begins at {offset}, expected {expected}")
            if start + offset + nbytes > self.size:
                end = start + offset + nbytes
                self._fail(f"it is truncated: {self.size:,} bytes, and the tensor {short(name)} ends at {end:,}")
            expected += padded(nbytes, alignment)
            tensors.append(GgufTensor(name, shape, kind, start + offset, nbytes))
        return tuple(tensors)

    def _preamble(self) -> tuple[int, int, int]:
        if self.size < 4 or self.cursor.take(4) != b"GGUF":
            self.cursor.at = 0
            corrupt(self.path, f"it is {describe(self.cursor.take(min(512, self.size)))}, not GGUF")
        (version,) = self._unpack("I")
        if version & 0xFFFF == 0:
            self._fail("it is GGUF for big-endian machines")
        if version not in (2, 3):
            self._fail(f"its GGUF version is {version}, expected 2 or 3")
        tensors, entries = self._unpack("QQ")
        for count, what, smallest in ((tensors, "tensors", 24), (entries, "metadata entries", 13)):
            if count > MAX_ENTRIES or count * smallest > self.cursor.left:
                self._fail(f"it claims {count:,} {what}, more than {self.size:,} bytes (or the limit) can hold")
        return version, tensors, entries

    def _unpack(self, codes: str) -> tuple[Any, ...]:
        return struct.unpack("<" + codes, self.cursor.take(struct.calcsize("<" + codes)))

    def _string(self, what: str, longest: int) -> bytes:
        (size,) = self._unpack("Q")
        if size > longest or size > self.cursor.left:
            self._fail(f"{what} claims {size:,} bytes; {self.cursor.left:,} are left and {longest:,} allowed")
        self.cursor.keep(size)
        return self.cursor.take(size)

    def _name(self, what: str, longest: int) -> str:
        try:
            name = self._string(what, longest).decode("utf-8")
        except UnicodeDecodeError:
            self._fail(f"{what} is not UTF-8")
        if not name:
            self._fail(f"{what} is empty")
        return name

    def _value(self, key: str) -> Any:
        (kind,) = self._unpack("I")
        if kind == _STRING:
            return self._string(f"the value of {short(key)}", MAX_STRING).decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            self._fail(f"the value of {short(key)} has the unknown type {kind}")
        (value,) = self._unpack(_SCALARS[kind])
        return bool(value) if kind == 7 else value

    def _array(self, key: str) -> GgufArray:
        kind, length = self._unpack("IQ")
        if kind not in _SCALARS and kind != _STRING:  # llama.cpp reads no nested arrays either
            self._fail(f"the array {short(key)} has items of the type {kind}")
        smallest = 8 if kind == _STRING else struct.calcsize(_SCALARS[kind])
        if length > MAX_ARRAY or length * smallest > self.cursor.left:
            self._fail(f"the array {short(key)} claims {length:,} items; {self.cursor.left:,} bytes are left")
        start = self.cursor.at
        if kind == _STRING:
            self.strings += length
            if self.strings > MAX_STRINGS:
                self._fail(f"its arrays hold more than {MAX_STRINGS:,} strings")
            self._step_over_strings(key, length)
        else:
            self.cursor.at += length * smallest
        return GgufArray(self.path, kind, length, start, self.cursor.at - start, self.source)

    def _step_over_strings(self, key: str, length: int) -> None:
        # The one loop that runs per token, so it is kept flat: `at` counts from where `data` begins.
        cursor, unpack = self.cursor, struct.Struct("<Q").unpack_from
        at, data, limit = cursor.at - cursor.base, cursor.data, cursor.limit - cursor.base
        held = len(data)
        for _ in range(length):
            if at + 8 > held:
                cursor.at = cursor.base + at
                at = cursor.need(8)
                data, limit = cursor.data, cursor.limit - cursor.base
                held = len(data)
            (size,) = unpack(data, at)
            at += 8 + size
            if size > MAX_STRING or at > limit:
                self._fail(f"a string of {short(key)} claims {size:,} bytes")
        cursor.at = cursor.base + at

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int, int]:
        name = self._name("a tensor's name", MAX_NAME)
        (dims,) = self._unpack("I")
        if dims > MAX_DIMS:
            self._fail(f"the tensor {short(name)} has {dims} dimensions, expected at most {MAX_DIMS}")
        shape = self._unpack("Q" * dims)
        kind, offset = self._unpack("IQ")
        if kind not in GGML_TYPES:
            self._fail(f"the tensor {short(name)} has the unknown type {kind}")
        label, block, block_bytes = GGML_TYPES[kind]
        columns = shape[0] if shape else 1
        values = math.prod(shape)
        if columns % block:
            self._fail(f"the tensor {short(name)} has {columns} columns; {label} has blocks of {block}")
        # Python's integers do not overflow; a size above the file's is refused here, long before 2**63.
        nbytes = values // block * block_bytes
        if nbytes > self.size:
            self._fail(f"it is truncated: the tensor {short(name)} has {nbytes:,} bytes, the file {self.size:,}")
        return name, shape, label, offset, nbytes

    def _fail(self, what: str) -> NoReturn:
        corrupt(self.path, what)
