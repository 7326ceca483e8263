"""The index of a checkpoint in several files: which of them holds which tensor.

Engines open whatever it names, so that "../../secret.safetensors" in it would be opened as well; it is held to the
files beside it before any engine sees it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from qlangchain.artifacts.bounds import short
from qlangchain.artifacts.names import safe_name
from qlangchain.errors import CorruptFileError

ENDING: Final = ".safetensors.index.json"
MAX_INDEX: Final = 48 << 20  # bytes; the largest models have 0.3 Mi tensors of 100 bytes each
MAX_SHARDS: Final = 2000


def parse_index(content: str | bytes, name: str, files: Collection[str] | None, hint: str) -> Mapping[str, str]:
    """Return which file holds each tensor; `files` are those that there are, None where that does not matter.

    `name` is the index's, for messages.

    Raises:
        CorruptFileError: it is no index, or names a file that is not there; `hint` says what to do then.
        UnsafeSourceError: it names a file that could lie elsewhere.

    """

    def bad(what: str) -> CorruptFileError:
        return CorruptFileError(f"{name} cannot be used: {what}.", hint=hint)

    try:
        index = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise bad(f"it is no JSON ({short(str(error))})") from error
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed or not all(isinstance(shard, str) for shard in placed.values()):
        raise bad("it has no weight_map of tensors to files")
    shards = set(placed.values())
    if len(shards) > MAX_SHARDS:
        raise bad(f"it names {len(shards):,} files")
    for shard in shards:
        if safe_name(shard) not in (shards if files is None else files):
            raise bad(f"there is no file {short(shard)}")
    return placed


def check_index(path: Path, name: str, tensors: Mapping[str, Collection[str]], hint: str) -> None:
    """Hold the index at `path` to the tensors of each file; raises as `parse_index`, and for a tensor in no file."""
    for tensor, shard in parse_index(_bounded(path, name, hint), name, tensors, hint).items():
        if tensor not in tensors[shard]:
            raise CorruptFileError(f"{name} cannot be used: {short(tensor)} is not in {shard}.", hint=hint)


def check_indices(directory: Path) -> None:
    """Hold every index in a directory to the files there; raises as `parse_index`."""
    for path in sorted(directory.glob(f"*{ENDING}")):
        hint = "Download the whole directory again, from a source that you trust."
        # Beside the same weights in one file an index is only what was left of the parts.
        is_left = path.with_name(path.name.removesuffix(".index.json")).exists()
        files = None if is_left else {beside.name for beside in directory.iterdir()}
        parse_index(_bounded(path, str(path), hint), str(path), files, hint)


def _bounded(path: Path, name: str, hint: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_INDEX + 1)
    except OSError as error:
        raise CorruptFileError(f"{name} cannot be read: {error.strerror}.", hint=hint) from error
    if len(content) > MAX_INDEX:
        raise CorruptFileError(f"{name} has more than {MAX_INDEX:,} bytes.", hint=hint)
    return content
