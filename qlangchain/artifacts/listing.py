"""What a hub repository holds at one commit: the facts that choosing and fetching work with, and nothing fetched.

Every field comes from the hub and is therefore only a claim until the bytes are here; `hub.py` has checked
its form (digests are hex of the right length, names stay inside a directory), not its truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: its POSIX path there, its size in bytes, and the digest that it must have.

    Files in large-file storage have a `sha256` (64 hex digits), all others only git's `blob_id` (40 hex digits,
    SHA-1 of the word blob, the size, a NUL, and the bytes). `flagged` holds the verdict of the hub's own scanner
    where it is bad.
    """

    name: str
    size_bytes: int
    sha256: str | None = None
    blob_id: str | None = None
    flagged: str | None = None

    @property
    def digest(self) -> str:
        """The digest that the bytes must have: SHA-256, or else git's."""
        return self.sha256 or self.blob_id or ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository pinned to one commit (40 hex digits).

    `config` is the hub's copy of config.json's main fields, `gguf` its summary of a GGUF file (total parameters,
    architecture, context_length), `base_models` the ids named by the tags, with the relation ("quantized", ...).
    `denied` is whether it is gated and its files were refused to us.
    """

    repo: str
    commit: str
    files: tuple[RemoteFile, ...] = ()
    tags: tuple[str, ...] = ()
    licence: str | None = None
    gated: bool = False
    denied: bool = False
    downloads: int = 0
    modified: str | None = None
    base_models: tuple[tuple[str, str], ...] = ()
    parameters: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    gguf: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def owner(self) -> str:
        """The organization or user that published it."""
        return self.repo.partition("/")[0]

    def file(self, name: str) -> RemoteFile | None:
        """Return the file of that path, or None."""
        return next((f for f in self.files if f.name == name), None)
