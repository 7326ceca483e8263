"""Headers of files on the hub, read by ranged GET: exact tensors and metadata before anything is downloaded.

They are the same values as `read_gguf_header` and `read_safetensors_header` give of a file on the disk, by the same
parsers within the same limits. Most take one request of 1 MiB; a GGUF with a large vocabulary takes 5 to 12 MB.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from qlangchain.artifacts.bounds import Read, short
from qlangchain.artifacts.headers import (
    GgufHeader,
    SafetensorsHeader,
    check_servable,
    parse_gguf_header,
    parse_safetensors_header,
)
from qlangchain.artifacts.hub import Hub
from qlangchain.artifacts.listing import Listing
from qlangchain.artifacts.names import safe_name
from qlangchain.artifacts.shard_index import MAX_INDEX, parse_index
from qlangchain.errors import CorruptFileError, InvalidInputError, NoWeightsError

logger = logging.getLogger(__name__)

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
_FIRST: Final = 1 << 20  # bytes of the first request
_AT_ONCE: Final = 4


def read_remote_header(hub: Hub, listing: Listing, name: str) -> GgufHeader | SafetensorsHeader:
    """Read and check the header of a .gguf or .safetensors file of a listing.

    The arrays of a GGUF are fetched when they are asked for, each within the deadline of `hub`. No digest covers a
    part of a file, so a header that seems damaged is read once more: bytes may have been damaged on their way.

    Raises:
        CorruptFileError: it is damaged, not what its name says, or not complete at its listed size.
        InvalidInputError: the name has neither ending.
        ModelNotFoundError, AccessDeniedError, HubError, UnsafeSourceError, OfflineError: as `Hub.text`.

    """
    kind = Path(safe_name(name)).suffix.lower()
    if kind not in (".gguf", ".safetensors"):
        raise InvalidInputError(f"{name} has no header that is known.", hint="Pass a .gguf or a .safetensors file.")

    def again(start: int, stop: int) -> bytes:
        with hub.open(listing, name) as reader:
            return reader.read(start, stop)

    def once() -> GgufHeader | SafetensorsHeader:
        with hub.open(listing, name) as reader:
            size = reader.file.size_bytes
            read = _with_first(reader.read, size)
            if kind == ".gguf":
                return parse_gguf_header(Path(name), read, size, again)
            return parse_safetensors_header(Path(name), read, size)

    try:
        return once()
    except CorruptFileError as error:
        logger.info("%s is read again: %s", name, error.message)
        return once()


def read_remote_headers(hub: Hub, listing: Listing, names: Iterable[str]) -> dict[str, GgufHeader | SafetensorsHeader]:
    """Read the headers of several files, all parts of a split model for example; raises as `read_remote_header`."""
    wanted = tuple(names)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="qlangchain-headers") as pool:
        return dict(zip(wanted, pool.map(lambda name: read_remote_header(hub, listing, name), wanted), strict=True))


def check_remote_servable(header: GgufHeader, listing: Listing) -> None:
    """Hold a remote GGUF header to what `check_servable` asks; its other parts must be listed.

    Raises CorruptFileError or UnsupportedModelError.
    """
    check_servable(header, exists=lambda path: listing.file(path.as_posix()) is not None)


def read_remote_checkpoint(hub: Hub, listing: Listing) -> dict[str, SafetensorsHeader]:
    """Read the headers of a whole safetensors checkpoint: of each shard that its index names, or of its one file.

    Raises:
        NoWeightsError: the repository has neither.
        CorruptFileError: the index and the headers do not agree, or a shard is not listed.
        ModelNotFoundError, AccessDeniedError, HubError, UnsafeSourceError, OfflineError: as `Hub.text`.

    """
    if listing.file(INDEX) is None:
        if listing.file(SINGLE) is None:
            raise NoWeightsError(f"{listing.repo} has neither {SINGLE} nor {INDEX}.", hint="Take another repository.")
        shards, placed = [SINGLE], None
    else:
        placed = _index(hub, listing)
        shards = sorted(set(placed.values()))
    headers = {
        name: header
        for name, header in read_remote_headers(hub, listing, shards).items()
        if isinstance(header, SafetensorsHeader)
    }
    if placed is not None:
        held = {tensor: name for name, header in headers.items() for tensor in header.tensors}
        if held != placed or sum(len(header.tensors) for header in headers.values()) != len(placed):
            wrong = sorted(set(held.items()) ^ set(placed.items()))[:1]
            where = short(wrong[0][0]) if wrong else "a tensor"
            raise CorruptFileError(
                f"{INDEX} of {listing.repo} does not agree with the shards about {where}.",
                hint="Take another repository of the same model.",
            )
    return headers


def _index(hub: Hub, listing: Listing) -> Mapping[str, str]:
    """Return which shard holds each tensor, with every shard's name checked and listed."""
    names = {file.name for file in listing.files}
    text = hub.text(listing, INDEX, limit=MAX_INDEX)
    return parse_index(text, f"{INDEX} of {listing.repo}", names, "Take another repository.")


def _with_first(read: Read, size: int) -> Read:
    """Fetch the first `_FIRST` bytes at once, and give from these what lies in them."""
    first = b""

    def read_ahead(start: int, stop: int) -> bytes:
        nonlocal first
        if not first and start < min(size, _FIRST):
            first = read(0, min(size, _FIRST))
        if stop <= len(first):
            return first[start:stop]
        if start < len(first):
            return first[start:] + read(len(first), stop)
        return read(start, stop)

    return read_ahead
