"""What the tests of the store share: filling one, damaging one, and forgetting what this process knows."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qlangchain.artifacts import blobs as blobs_module
from qlangchain.artifacts.manifest import Manifest, StoredFile
from qlangchain.artifacts.store import Store, Stored

COMMIT = "c" * 40


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def publish(store: Store, content: bytes, *, also: str | None = None) -> Path:
    partial = store.partial(sha(content))
    partial.write_bytes(content)
    return store.publish_blob(partial, sha(content), also=also)


def manifest_of(files: dict[str, bytes], **fields: object) -> Manifest:
    stored = [StoredFile(name, len(content), sha(content)) for name, content in files.items()]
    return Manifest.downloaded(**{"repo": "org/name", "commit": COMMIT, "files": stored, **fields})


def add(store: Store, files: dict[str, bytes], **fields: object) -> Stored:
    for content in files.values():
        publish(store, content)
    return store.add(manifest_of(files, **fields))


def overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def forget() -> None:
    """Know only what a new process knows."""
    blobs_module._hashed.clear()
