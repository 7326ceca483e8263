"""A bounded reader of safetensors headers: see https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlangchain.artifacts.bounds import corrupt, describe, open_file, short

MAX_HEADER = 100_000_000  # the limit of the safetensors library itself

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
        size = file.seek(0, 2)
        file.seek(0)
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= MAX_HEADER:
            file.seek(0)
            corrupt(path, f"it is {describe(file.read(512))}, not safetensors")
        if 8 + length > size:
            corrupt(path, f"it is truncated inside the header: {size:,} bytes of at least {8 + length:,}")
        raw = file.read(length)
    entries = _parse_json(path, raw)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        corrupt(path, "its __metadata__ is not a table of strings")
    start = 8 + length
    tensors = {name: _safetensors_entry(path, name, entry, start) for name, entry in entries.items()}
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


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a name occurs twice")
        return table

    try:
        if raw[:1] != b"{":
            raise ValueError("it does not begin with {")
        entries: dict[str, Any] = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        corrupt(path, f"its header is no JSON object ({short(str(error))})")
    if not isinstance(entries, dict):
        corrupt(path, "its header is no JSON object")
    return entries


def _safetensors_entry(path: Path, name: str, entry: Any, start: int) -> SafetensorsTensor:
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
