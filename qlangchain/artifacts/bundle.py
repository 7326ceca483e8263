"""Bundles: artifacts in one file, for machines without a network.

A bundle is a plain tar archive that any tar can list and unpack: first `qlangchain-bundle.json`, then
`artifacts/<id>.json` for each manifest, then `blobs/<sha256>` for each file. Importing takes nothing else: no links,
no directories, no other names, nothing twice, nothing whose size or digest is not the one in a manifest. Only the
headers of 512 bytes are read, so that nothing in an archive decides how much memory it takes.

The digests prove that nothing was changed since the export, not who exported it: a manifest that names a repository
is as true as its sender.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from qlangchain.artifacts.atomic import CHUNK, NOTE_BYTES, sync_directory, unwritable
from qlangchain.artifacts.manifest import Manifest, StoredFile, parse
from qlangchain.artifacts.store import Store, Stored
from qlangchain.errors import (
    ChecksumError,
    CorruptFileError,
    DiskFullError,
    InvalidInputError,
    ModelNotFoundError,
    UnsafeSourceError,
)

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_INDEX: Final = "qlangchain-bundle.json"
_VERSION: Final = 1
_BLOCK: Final = 512  # bytes: the unit of a tar archive (POSIX.1-1988, ustar)
_MAX_ARTIFACTS: Final = 1000
_SPARE: Final = 64 * 1024 * 1024  # bytes that an import leaves free on the disk
_LOCK_SECONDS: Final = 600.0


def export_bundle(
    store: Store, ids: Iterable[str], file: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> tuple[Stored, ...]:
    """Write artifacts into one file, hashing every byte once more on its way; returns them.

    Raises:
        ModelNotFoundError: an artifact is not in the store, or not whole.
        InvalidInputError: nothing to export, or `file` is there already.
        ChecksumError: a blob has changed; nothing is left of the file.
        DiskFullError, ArtifactError: the file cannot be written.

    """
    chosen = []
    for id in dict.fromkeys(ids):
        found = store.get(id)
        if found is None:
            raise ModelNotFoundError(
                f"There is no whole artifact {id[:80]!r} in the store.", hint="`qlangchain cache ls` lists them."
            )
        chosen.append(found)
    if not chosen or len(chosen) > _MAX_ARTIFACTS:
        raise InvalidInputError(f"{len(chosen)} artifacts cannot be exported.", hint=f"Name 1 to {_MAX_ARTIFACTS}.")
    if file.exists() and not overwrite:
        raise InvalidInputError(f"{file} is there already.", hint="Choose another name, or remove it.")
    blobs = {entry.sha256: entry for stored in chosen for entry in stored.manifest.files}
    total, done = sum(entry.size_bytes for entry in blobs.values()), 0
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
            _put(tar, _INDEX, json.dumps({"version": _VERSION, "artifacts": len(chosen), "blobs": len(blobs)}))
            for stored in chosen:
                _put(tar, f"artifacts/{stored.id}.json", json.dumps(stored.manifest.to_dict()))
            for digest in sorted(blobs):
                with store.path_of(digest).open("rb") as source:
                    reader = _Hashing(source)
                    tar.addfile(_member(f"blobs/{digest}", blobs[digest].size_bytes), reader)
                if reader.hexdigest() != digest:
                    store.blob(digest, afresh=True)  # goes to quarantine
                    raise ChecksumError(
                        f"{blobs[digest].name} has changed in the store.", hint="Fetch or make it again."
                    )
                done += blobs[digest].size_bytes
                if progress:
                    progress(done, total)
            tar.close()
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(partial, file)
        sync_directory(file.parent)
    except OSError as error:
        raise unwritable(file.parent, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return tuple(chosen)


def import_bundle(store: Store, file: Path, *, progress: Progress | None = None) -> tuple[Stored, ...]:
    """Take the artifacts of a bundle into the store; returns them. What is there already is not written again.

    An artifact is entered when all its files are there and have their digests; what was asked for before keeps
    leading where it led.

    Raises:
        ModelNotFoundError: there is no such file.
        CorruptFileError, ChecksumError, UnsafeSourceError: it is no bundle, damaged, or hostile; no artifact of it
            was entered, and whole files are kept for the next try.
        DiskFullError, ArtifactError: the store cannot be written.

    """
    try:
        source = file.open("rb")
    except OSError as error:
        raise ModelNotFoundError(f"{file} cannot be opened: {error.strerror}.", hint="Check the path.") from error
    with source:
        try:
            return _import(store, source, progress)
        except OSError as error:
            raise unwritable(store.root, error) from error


def _import(store: Store, source: BinaryIO, progress: Progress | None) -> tuple[Stored, ...]:
    members = _members(source)
    index = _json(source, next(members, None), _INDEX)
    counts = index.get("artifacts"), index.get("blobs")
    if index.get("version") != _VERSION or not all(type(count) is int for count in counts):
        raise CorruptFileError("It is no bundle of this version.", hint="Export it again.")
    if not 0 < counts[0] <= _MAX_ARTIFACTS:
        raise UnsafeSourceError(f"It announces {counts[0]} artifacts.", hint=f"At most {_MAX_ARTIFACTS} are taken.")
    manifests: dict[str, Manifest] = {}
    for _ in range(counts[0]):
        member = next(members, None)
        found = parse(_json(source, member, "a manifest"))
        if member is None or member.name != f"artifacts/{found.id}.json" or found.id in manifests:
            raise UnsafeSourceError("A manifest lies under a name that is not its own.", hint="Do not use this bundle.")
        manifests[found.id] = found
    wanted = _wanted(manifests.values())
    missing = sum(entry.size_bytes for digest, entry in wanted.items() if not store.blob(digest))
    if store.free_bytes() < missing + _SPARE and missing:
        raise DiskFullError(
            f"The bundle brings {missing} bytes, and {store.free_bytes()} are free at {store.root}.",
            hint="Free some room (`qlangchain cache gc`), or set QLANGCHAIN_HOME elsewhere.",
        )
    total, done = sum(entry.size_bytes for entry in wanted.values()), 0
    for member in members:
        digest = member.name.removeprefix("blobs/")
        entry = wanted.pop(digest, None) if member.name == f"blobs/{digest}" else None
        if entry is None:
            raise UnsafeSourceError(
                f"{member.name[:80]!r} is in no manifest of the bundle, or is there twice.",
                hint="Do not use this bundle.",
            )
        if member.size != entry.size_bytes:
            raise UnsafeSourceError(f"{entry.name!r} does not have the size that its manifest says.")
        _take(store, source, digest, entry)
        done += entry.size_bytes
        if progress:
            progress(done, total)
    if wanted:
        raise CorruptFileError(f"{len(wanted)} files are missing at its end.", hint="Copy the bundle again.")
    return tuple(store.get(id) or store.add(manifest, renew=False) for id, manifest in manifests.items())


def _wanted(manifests: Iterable[Manifest]) -> dict[str, StoredFile]:
    wanted: dict[str, StoredFile] = {}
    for manifest in manifests:
        for entry in manifest.files:
            if wanted.setdefault(entry.sha256, entry).size_bytes != entry.size_bytes:
                raise UnsafeSourceError("Two manifests contradict each other.", hint="Do not use this bundle.")
    return wanted


def _take(store: Store, source: BinaryIO, digest: str, entry: StoredFile) -> None:
    """Publish one member as a blob, or pass over it where that blob is there."""
    with store.lock(digest, what=f"importing {entry.name}", timeout=_LOCK_SECONDS):
        is_there = store.blob(digest) is not None
        partial = store.partial(digest).with_name(f"{digest}.import")
        try:
            sum = hashlib.sha256()
            with Path(os.devnull if is_there else partial).open("wb") as target:
                for chunk in _bytes(source, entry.size_bytes):
                    if not is_there:
                        sum.update(chunk)
                        target.write(chunk)
            if is_there:
                return
            if sum.hexdigest() != digest:
                raise ChecksumError(f"{entry.name} is damaged in the bundle.", hint="Copy or export the bundle again.")
            store.publish_blob(partial, digest)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int


def _members(source: BinaryIO) -> Iterator[_Member]:
    """The members of an archive, one after the other; whoever takes one reads its bytes and not more."""
    at = 0
    while True:
        source.seek(at)
        header = source.read(_BLOCK)
        if header == bytes(_BLOCK):
            return
        try:
            found = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.TarError, ValueError) as error:
            what = "ends in the middle" if len(header) < _BLOCK else "is no tar archive"
            raise CorruptFileError(f"The bundle {what}: {error}.", hint="Copy the bundle again.") from error
        if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or found.size < 0:
            raise UnsafeSourceError(f"{found.name[:80]!r} is no regular file.", hint="Do not use this bundle.")
        yield _Member(found.name, found.size)
        at += _BLOCK + -(-found.size // _BLOCK) * _BLOCK


def _json(source: BinaryIO, member: _Member | None, what: str) -> Any:
    if member is None or (what == _INDEX and member.name != _INDEX):
        raise CorruptFileError(f"The bundle has not {what} where it should be.", hint="Export it again.")
    if member.size > NOTE_BYTES:
        raise UnsafeSourceError(f"{member.name[:80]!r} is too large.", hint="Do not use this bundle.")
    try:
        content = json.loads(b"".join(_bytes(source, member.size)))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{member.name[:80]!r} is no JSON.", hint="Copy the bundle again.") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{member.name[:80]!r} is no JSON object.", hint="Copy the bundle again.")
    return content


def _bytes(source: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        chunk = source.read(min(size, CHUNK))
        if not chunk:
            raise CorruptFileError("The bundle ends in the middle.", hint="Copy the bundle again.")
        size -= len(chunk)
        yield chunk


def _put(tar: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    tar.addfile(_member(name, len(content)), io.BytesIO(content))


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)  # no owner and no time: the same artifacts make the same bundle
    member.size, member.mode = size, 0o444
    return member


class _Hashing:
    """A file that hashes what is read from it."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._sum = source, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes."""
        chunk = self._source.read(size)
        self._sum.update(chunk)
        return chunk

    def hexdigest(self) -> str:
        """The SHA-256 of what was read."""
        return self._sum.hexdigest()
