"""From a candidate on the hub to an artifact in the store: adopted, fetched, verified, entered under its names."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from qlangchain.artifacts.bounds import short
from qlangchain.artifacts.candidates import Candidate, check_header
from qlangchain.artifacts.download import FetchProgress, Wanted, fetch
from qlangchain.artifacts.finding import facts_of
from qlangchain.artifacts.headers import GgufHeader, check_servable, read_gguf_header, read_safetensors_header
from qlangchain.artifacts.hub import Hub
from qlangchain.artifacts.listing import Listing, RemoteFile
from qlangchain.artifacts.manifest import Manifest, StoredFile
from qlangchain.artifacts.names import nominal_bits
from qlangchain.artifacts.shard_index import ENDING, check_index
from qlangchain.artifacts.source import format_of
from qlangchain.artifacts.store import Store, Stored
from qlangchain.errors import CorruptFileError, ModelNotFoundError, QlangchainWarning, UnsupportedModelError

T = TypeVar("T")
Watch = Callable[[FetchProgress], None]
_JSON: Final = 64 * 1024 * 1024  # bytes of a JSON file beside weights; tokenizers are the largest, at 30 MB


_AS_UPLOADED: Final = "Every byte is as its publisher uploaded it: take another repository."


def fetch_candidate(
    candidate: Candidate,
    store: Store,
    hub: Hub,
    *,
    asked: str,
    revision: str | None = None,
    deadline: float | None = None,
    progress: Watch | None = None,
    cancel: threading.Event | None = None,
) -> Stored:
    """Bring the files of `candidate` into the store and return the artifact. What is there already is not fetched.

    `asked` and `revision` are what the user wrote, under which it is found offline from then on.

    Raises:
        ChecksumError, HubError, ...: as `download.fetch`.
        CorruptFileError, UnsupportedModelError: every byte is what was listed, and it still is no such model.

    """
    listing, variant = candidate.listing, candidate.variant
    blobs = _collect(listing, variant.files, store, hub, deadline, progress, cancel)
    header = _verified(candidate, blobs)
    manifest = Manifest.downloaded(
        repo=listing.repo,
        commit=listing.commit,
        files=[StoredFile(file.name, file.size_bytes, blobs[file.name].name) for file in variant.files],
        model=listing.repo.partition("/")[2],
        revision=revision,
        licence=listing.licence,
        method=variant.scheme,
        format=header.get("format", variant.format),
        bits=variant.bits,
        header={**header, "base": (candidate.base or listing).repo, "label": variant.label},
        source=f"{hub.endpoint}/{listing.repo}",
    )
    stored = store.add(manifest)
    for format in {None, variant.format, variant.label}:
        store.remember(asked, stored.id, revision=revision, format=format, renew=format is not None)
    return stored


def fetch_locked(
    manifest: Manifest,
    store: Store,
    hub: Hub,
    *,
    deadline: float | None = None,
    progress: Watch | None = None,
    cancel: threading.Event | None = None,
) -> Stored:
    """Bring exactly what a lock file pins into the store; with everything there, the hub is not asked at all.

    Raises:
        ModelNotFoundError: it was made on another machine and cannot be fetched.
        ChecksumError, HubError, ...: as `download.fetch`.

    """
    if found := store.get(manifest.id):
        return found
    if manifest.repo is None or manifest.commit is None:
        raise ModelNotFoundError(
            f"{manifest.model or manifest.id} was made on another machine, so it cannot be fetched.",
            hint="Take it there with `qlangchain cache export`, and here with `qlangchain cache import`.",
        )
    # Git's small files are listed with their SHA-256 here, which the hub does not know them by.
    listing = hub.listing(manifest.repo, manifest.commit)
    files = []
    for pinned in manifest.files:
        listed = listing.file(pinned.name)
        if listed is None or listed.size_bytes != pinned.size_bytes:
            raise ModelNotFoundError(
                f"{manifest.repo} at {manifest.commit} has no {pinned.name} of {pinned.size_bytes:,} bytes.",
                hint="The lock file does not belong to this hub; write it anew with `qlangchain pull MODEL --lock`.",
            )
        if listed.sha256 not in (None, pinned.sha256):
            raise _not_as_locked(pinned.name, manifest.repo)  # before its bytes are fetched
        files.append(listed)
    blobs = _collect(listing, tuple(files), store, hub, deadline, progress, cancel)
    for pinned in manifest.files:
        if blobs[pinned.name].name != pinned.sha256:
            raise _not_as_locked(pinned.name, manifest.repo)
    return store.add(manifest)


def _not_as_locked(name: str, repo: str) -> CorruptFileError:
    return CorruptFileError(
        f"{name} of {repo} is not the file that was locked.",
        hint="Look at `qlangchain.lock` and at the repository's history before you trust either.",
    )


def _collect(
    listing: Listing,
    files: tuple[RemoteFile, ...],
    store: Store,
    hub: Hub,
    deadline: float | None,
    progress: Watch | None,
    cancel: threading.Event | None,
) -> dict[str, Path]:
    """Return the blob of each file: from the store, from the machine's ordinary hub cache, or from the hub."""
    blobs: dict[str, Path] = {}
    for file in files:
        if (blob := store.known(file.digest) or store.adopt(file.digest, file.size_bytes)) is not None:
            blobs[file.name] = blob
    missing = [Wanted(listing.repo, listing.commit, file) for file in files if file.name not in blobs]
    if missing:
        blobs |= fetch(
            missing,
            store,
            endpoint=hub.endpoint,
            token=hub.bearer(),
            deadline=deadline,
            progress=progress,
            cancel=cancel,
        )
    return blobs


def _verified(candidate: Candidate, blobs: Mapping[str, Path]) -> dict[str, Any]:
    """Read what has arrived as an engine would, and return its facts for the manifest.

    Digests prove that the bytes are the publisher's, not that they are a model.
    """
    weights = {file.name: blobs[file.name] for file in candidate.variant.weights}
    if next(iter(weights)).lower().endswith(".gguf"):
        return _gguf_facts(candidate, _gguf_headers(weights))
    held = {name: _read(read_safetensors_header, path, name).tensors for name, path in weights.items()}
    tensors = sum(map(len, held.values()))
    for name in blobs:
        if name.endswith(ENDING):
            check_index(blobs[name], name, held, _AS_UPLOADED)
    config = _json(blobs.get("config.json"))
    if config.get("auto_map"):
        raise UnsupportedModelError(
            f"{candidate.name} brings code of its own (auto_map), which is never run.", hint="Take another repository."
        )
    names = ("model_type", "max_position_embeddings", "vocab_size", "num_hidden_layers", "hidden_size")
    return {"tensors": tensors, **{name: config[name] for name in names if isinstance(config.get(name), int | str)}}


def _gguf_headers(weights: Mapping[str, Path]) -> list[GgufHeader]:
    """Read the headers of a GGUF variant's files, and hold them to what an engine needs of a model in parts."""
    headers = [replace(_read(read_gguf_header, path, name), path=Path(name)) for name, path in weights.items()]
    names = {Path(name) for name in weights}
    check_servable(headers[0], exists=names.__contains__)
    for number, header in enumerate(headers):
        said = header.metadata.get("split.no", 0), header.metadata.get("split.count", 0) or 1
        if len(headers) > 1 and said != (number, len(headers)):
            raise CorruptFileError(
                f"{header.path} calls itself part {short(said[0])} of {short(said[1])} (from 0), not {number} of "
                f"{len(headers)}.",
                hint=_AS_UPLOADED,
            )
    return headers


def _read(reader: Callable[[Path], T], path: Path, name: str) -> T:
    try:
        return reader(path)
    except CorruptFileError as error:
        raise CorruptFileError(error.message.replace(path.name, name), hint=_AS_UPLOADED) from error


def _gguf_facts(candidate: Candidate, headers: list[GgufHeader]) -> dict[str, Any]:
    first = headers[0]
    facts = facts_of(first, parts=len(headers))
    if fault := check_header(candidate, facts):
        raise UnsupportedModelError(f"{candidate.name} is not taken: {fault}", hint="Another candidate may be.")
    said, is_format = candidate.variant.format, format_of(first)
    if nominal_bits(said) != nominal_bits(is_format):
        warnings.warn(
            f"{candidate.name} is named {said}, and its header says {is_format}; the header is right.",
            QlangchainWarning,
            stacklevel=2,
        )
        said = is_format
    found = {
        "format": said,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "vocabulary": facts.vocabulary,
        "context_length": first.get("context_length"),
        "name": first.metadata.get("general.name"),
    }
    return {name: value for name, value in found.items() if isinstance(value, int | str)}


def _json(path: Path | None) -> dict[str, Any]:
    if path is None or path.stat().st_size > _JSON:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"config.json is no JSON: {error}.", hint="Take another repository.") from error
    return content if isinstance(content, dict) else {}
