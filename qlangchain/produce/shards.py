"""Writing safetensors as a stream: the headers first, then bytes copied from the files where they lie.

Nothing is held but a chunk, and a model larger than a shard becomes several files with an index, as transformers
names them. Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qlangchain.artifacts.headers import SafetensorsTensor
from qlangchain.errors import CorruptFileError
from qlangchain.produce.checkpoint import INDEX

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5_000_000_000  # what transformers writes
_CHUNK = 8 << 20
_NAMES = {"int32": "I32", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor to be written: the place of its bytes, and the type that it is to have.

    `dtype` differs from the source's only from F32 to BF16 or F16.
    """

    tensor: SafetensorsTensor
    file: Path
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its size in bytes in the result."""
        return self.tensor.nbytes // 2 if self.dtype != self.tensor.dtype else self.tensor.nbytes


def write_shards(
    directory: Path,
    pieces: Iterable[Piece],
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `pieces` to model.safetensors, or to several shards and their index. `progress` is given bytes done.

    Raises `CorruptFileError` where a source ends early, and `OSError`.
    """
    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        if shards[-1] and sum(one.nbytes for one in shards[-1]) + piece.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(piece)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    done = 0
    for name, shard in zip(names, shards, strict=True):
        done = _write_shard(directory / name, shard, done, progress)
    if len(shards) > 1:
        weight_map = {p.tensor.name: name for name, shard in zip(names, shards, strict=True) for p in shard}
        index = {"metadata": {"total_size": done}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one file, which has its name only when it is on the disk. Raises `OSError`."""
    entries: dict[str, object] = {}
    at = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        dtype = _NAMES[str(tensor.dtype).removeprefix("torch.")]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(_header(entries))
        for tensor in tensors.values():
            file.write(as_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    import torch

    raw: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def _header(entries: Mapping[str, object]) -> bytes:
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def _write_shard(path: Path, pieces: list[Piece], done: int, progress: Callable[[int], None] | None) -> int:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for piece in pieces:
        entries[piece.tensor.name] = {
            "dtype": piece.dtype,
            "shape": list(piece.tensor.shape),
            "data_offsets": [at, at + piece.nbytes],
        }
        at += piece.nbytes
    with path.open("wb") as out:
        out.write(_header(entries))
        for piece in pieces:
            with piece.file.open("rb") as source:
                source.seek(piece.tensor.offset)
                left = piece.tensor.nbytes
                while left:
                    chunk = source.read(min(_CHUNK, left))
                    if not chunk:
                        raise CorruptFileError(
                            f"{piece.file.name} ended inside {piece.tensor.name}.", hint="Was it changed meanwhile?"
                        )
                    left -= len(chunk)
                    done += out.write(_converted(chunk, piece))
                    if progress:
                        progress(done)
        out.flush()
        os.fsync(out.fileno())
    return done


def _converted(chunk: bytes, piece: Piece) -> bytes:
    if piece.dtype == piece.tensor.dtype:
        return chunk
    values = np.frombuffer(chunk, "<f4")
    if piece.dtype == "F16":
        return values.astype("<f2").tobytes()
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()  # to the nearest, ties to even
