"""A bounded reader of safetensors headers: see https://github.com/huggingface/safetensors#format.

The header is JSON of up to 100 MB, which `json.loads` may turn into gigabytes of lists. So it is walked entry by
entry, and only what one entry may be, a few hundred bytes, is ever given to a JSON parser.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from qlangchain.artifacts.bounds import Cursor, Read, corrupt, describe, open_file, reader, short

MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
MAX_TENSORS = 1 << 17  # of one file: models with more come in dozens of files
MAX_ENTRY = 4096  # bytes of the description of one tensor; usual are 70
MAX_STRING = 16 << 20

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"', re.DOTALL)
_ENTRY = re.compile(rb"\{[^{}]*+\}")
# An entry as the safetensors library itself writes it, up to the comma behind it: one match instead of ten.
_USUAL = re.compile(
    rb'"([^"\\\x00-\x1f]{1,512}+)":\{"dtype":"(\w{1,16}+)","shape":(\[[0-9,]{0,256}+\]),'
    rb'"data_offsets":(\[[0-9]{1,16}+,[0-9]{1,16}+\])\},'
)

# Bits of a value of each safetensors type.
SAFETENSORS_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One tensor: `shape` with rows first, `offset` in bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a safetensors file says about itself."""

    path: Path
    tensors: Mapping[str, SafetensorsTensor]
    data_offset: int
    file_size: int
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_safetensors_header(path: str | Path) -> SafetensorsHeader:
    """Read and check the header of the safetensors file at `path`, including that the file is complete.

    Raises `CorruptFileError` or `ModelNotFoundError`.
    """
    path = Path(path)
    with open_file(path) as file:
        return parse_safetensors_header(path, reader(path, file), file.seek(0, 2))


def parse_safetensors_header(path: Path, read: Read, size: int) -> SafetensorsHeader:
    """Parse the header of a file of `size` bytes that `read` gives the ranges of; `path` names it in messages.

    Raises `CorruptFileError`.
    """
    head = read(0, min(size, 512))
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if not 2 <= length <= MAX_HEADER:
        corrupt(path, f"it is {describe(head)}, not safetensors")
    start = 8 + length
    if start > size:
        corrupt(path, f"it is truncated inside the header: {size:,} bytes of at least {start:,}")
    cursor = Cursor(path, read, size, start)
    cursor.at = 8
    tensors, metadata = _Walk(cursor).walk()
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            what = "overlaps the one before it" if tensor.offset < end else "leaves a gap before it"
            corrupt(path, f"the tensor {short(tensor.name)} {what}")
        end += tensor.nbytes
    if end != size:
        what = "it is truncated" if end > size else "it has bytes that belong to no tensor"
        corrupt(path, f"{what}: {size:,} bytes, {end:,} expected")
    return SafetensorsHeader(path, tensors, start, size, metadata)


class _Walk:
    """One walk through the JSON object of a header."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor, self.path = cursor, cursor.path

    def walk(self) -> tuple[dict[str, SafetensorsTensor], dict[str, str]]:
        tensors: dict[str, SafetensorsTensor] = {}
        metadata: dict[str, str] | None = None
        self._expect(b"{", skip=False)
        more = self._peek() != b"}"
        while more:
            self._usual_entries(tensors)
            self.cursor.check_time()
            name = self._name()
            if name in tensors or (name == "__metadata__" and metadata is not None):
                self._no_object("a name occurs twice")
            if name == "__metadata__":
                metadata = self._metadata()
            else:
                self._add(tensors, name, self._entry(name))
            more = self._goes_on()
        self._expect(b"}")
        self._skip_space()
        if self.cursor.left:
            self._no_object("it goes on behind its end")
        return tensors, metadata or {}

    def _usual_entries(self, tensors: dict[str, SafetensorsTensor]) -> None:
        """Read as many entries of the usual form as are in memory; what is left takes the careful way."""
        cursor = self.cursor
        self._peek()
        end = cursor.base + len(cursor.data)
        while found := _USUAL.match(cursor.data, cursor.at - cursor.base):
            try:
                name, entry = found[1].decode(), {"dtype": found[2].decode(), "shape": json.loads(found[3])}
                entry["data_offsets"] = json.loads(found[4])
            except ValueError:
                return
            if name in tensors or name == "__metadata__":
                return
            cursor.keep(len(name))
            self._add(tensors, name, entry)
            cursor.at += len(found[0])
            if len(tensors) % 1024 == 0:
                cursor.check_time()
            if end - cursor.at < MAX_ENTRY <= cursor.left:
                cursor.need(MAX_ENTRY)
                end = cursor.base + len(cursor.data)

    def _add(self, tensors: dict[str, SafetensorsTensor], name: str, entry: Any) -> None:
        tensors[name] = _tensor(self.path, name, entry, self.cursor.limit)
        if len(tensors) > MAX_TENSORS:
            corrupt(self.path, f"its header lists more than {MAX_TENSORS:,} tensors")

    def _metadata(self) -> dict[str, str]:
        table: dict[str, str] = {}
        if self._peek() != b"{":
            corrupt(self.path, "its __metadata__ is not a table of strings")
        self._expect(b"{")
        more = self._peek() != b"}"
        while more:
            name = self._name()
            if name in table:
                self._no_object("a name occurs twice")
            if self._peek() != b'"':
                corrupt(self.path, "its __metadata__ is not a table of strings")
            table[name] = self._string()
            more = self._goes_on()
        self._expect(b"}")
        return table

    def _entry(self, name: str) -> Any:
        begins = self._peek()
        if begins == b"[":
            self._no_object(f"the entry {short(name)} is a list")
        if begins != b"{":
            return None
        found = self._match(_ENTRY, MAX_ENTRY)
        if found is None:
            self._no_object(f"the entry {short(name)} is not closed, or nested")
        try:
            return _DECODER.decode(found.decode())
        except (ValueError, RecursionError) as error:
            self._no_object(str(error))

    def _name(self) -> str:
        if self._peek() != b'"':
            self._no_object("a name is missing")
        name = self._string()
        self._expect(b":")
        return name

    def _string(self) -> str:
        raw = self._match(_STRING, MAX_STRING)
        if raw is None:
            self._no_object("a string is not closed, or too long")
        self.cursor.keep(len(raw))
        try:
            text: str = json.loads(raw.decode())
            text.encode()  # half of a surrogate pair is no character
        except ValueError as error:
            self._no_object(str(error))
        return text

    def _match(self, pattern: re.Pattern[bytes], longest: int) -> bytes | None:
        """Take what `pattern` matches at the place, in at most `longest` bytes, or return None."""
        # Each pattern ends in a byte of its own, so what matches inside the window matches in the file.
        asked, most = 512, min(longest, self.cursor.left)
        while True:
            begin = self.cursor.need(min(asked, most))
            found = pattern.match(self.cursor.data, begin, begin + most)
            if found:
                self.cursor.at += found.end() - begin
                return found[0]
            if asked >= most:
                return None
            self.cursor.check_time()
            asked = max(asked, len(self.cursor.data) - begin) * 4

    def _skip_space(self) -> None:
        while self.cursor.left:
            begin = self.cursor.need(1)
            found = _SPACE.match(self.cursor.data, begin)
            self.cursor.at += found.end() - begin if found else 0
            if self.cursor.at < self.cursor.base + len(self.cursor.data):
                return

    def _peek(self) -> bytes:
        self._skip_space()
        if not self.cursor.left:
            self._no_object("it ends too early")
        begin = self.cursor.need(1)
        return self.cursor.data[begin : begin + 1]

    def _expect(self, byte: bytes, *, skip: bool = True) -> None:
        if skip:
            self._skip_space()
        if not self.cursor.left or self.cursor.take(1) != byte:
            self._no_object(f"{byte.decode()} is missing")

    def _goes_on(self) -> bool:
        if self._peek() != b",":
            return False
        self.cursor.at += 1
        return True

    def _no_object(self, why: str) -> NoReturn:
        corrupt(self.path, f"its header is no JSON object ({short(why)})")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _tensor(path: Path, name: str, entry: Any, start: int) -> SafetensorsTensor:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    span = entry.get("data_offsets") if isinstance(entry, dict) else None
    if (
        not isinstance(shape, list)
        or len(shape) > 16
        or not isinstance(span, list)
        or len(span) != 2
        or not all(type(number) is int and 0 <= number < 1 << 53 for number in (*shape, *span))
    ):
        corrupt(path, f"the entry of the tensor {short(name)} is not a dtype, a shape and two offsets")
    dtype = entry.get("dtype")
    bits = SAFETENSORS_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        corrupt(path, f"the tensor {short(name)} has the unknown dtype {short(dtype)}")
    nbytes, rest = divmod(math.prod(shape) * bits, 8)
    if rest or span[1] - span[0] != nbytes:
        corrupt(path, f"the tensor {short(name)} has {span[1] - span[0]:,} bytes, {dtype} {shape} needs {nbytes:,}")
    return SafetensorsTensor(name, str(dtype), tuple(shape), start + span[0], nbytes)
