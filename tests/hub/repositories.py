"""What the stand-in hub holds: repositories with their history, and the JSON and headers that describe them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

TOKEN = "hf_StandInTokenThatMustNotLeak0123456789"
LARGE = 10 << 20  # bytes; like the real hub, weights and everything above 10 MiB lie in large-file storage
WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".dat", ".npy")


def seeded(size: int, seed: int = 0) -> bytes:
    """`size` random bytes that are the same each time."""
    return random.Random(seed).randbytes(size)


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Content:
    """The bytes of a file with the digests that the hub shows of them; large-file storage has its own digest."""

    data: bytes
    is_large: bool

    @classmethod
    def of(cls, name: str, source: bytes | str | Path) -> Content:
        data = source.read_bytes() if isinstance(source, Path) else source
        data = data.encode() if isinstance(data, str) else data
        return cls(data, name.endswith(WEIGHTS) or len(data) >= LARGE)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n" % (
            self.sha256.encode(),
            len(self.data),
        )

    @cached_property
    def blob_id(self) -> str:
        return git_blob_id(self.pointer if self.is_large else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.blob_id


@dataclass
class Repository:
    """A model repository. `history` is what each commit (40 hex digits) holds, `refs` where branches and tags point.

    `gated` is False, "auto" or "manual"; `granted` is whether `TOKEN` has been given access. `flagged` maps names to
    the verdict of the hub's scanner ("unsafe", "suspicious").
    """

    id: str
    history: dict[str, dict[str, Content]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    gated: bool | str = False
    private: bool = False
    disabled: bool = False
    granted: bool = False
    licence: str | None = None
    base_model: str | None = None
    relation: str = "quantized"
    config: dict[str, Any] | None = None
    gguf: dict[str, Any] | None = None
    safetensors: dict[str, Any] | None = None
    downloads: int = 0
    likes: int = 0
    modified: str = "2026-01-02T03:04:05.000Z"
    flagged: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes | str | Path], commit: str | None = None, branch: str = "main") -> str:
        contents = {name: Content.of(name, source) for name, source in files.items()}
        if commit is None:
            described = repr((self.id, len(self.history), [(n, c.blob_id) for n, c in sorted(contents.items())]))
            commit = hashlib.sha1(described.encode(), usedforsecurity=False).hexdigest()
        self.history[commit] = contents
        self.refs[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit, None where there is none."""
        return self.refs.get(revision) or (revision if revision in self.history else None)

    @property
    def all_tags(self) -> list[str]:
        tags = list(self.tags)
        if self.licence:
            tags.append(f"license:{self.licence}")
        if self.base_model:
            tags += [f"base_model:{self.base_model}", f"base_model:{self.relation}:{self.base_model}"]
        names = [name for files in self.history.values() for name in files]
        for suffix, tag in ((".gguf", "gguf"), (".safetensors", "safetensors")):
            if tag not in tags and any(name.endswith(suffix) for name in names):
                tags.append(tag)
        return tags

    def card_data(self) -> dict[str, Any]:
        said = {"license": self.licence, "base_model": self.base_model, "tags": self.tags or None}
        return {key: value for key, value in said.items() if value is not None} | self.card

    def info(self, commit: str, *, blobs: bool = False, security: bool = False) -> dict[str, Any]:
        """What `/api/models/ORG/NAME` answers; sizes and digests only with `blobs`."""
        siblings: list[dict[str, Any]] = []
        for name, content in self.history[commit].items():
            entry: dict[str, Any] = {"rfilename": name}
            if blobs:
                entry |= {"blobId": content.blob_id, "size": len(content.data)}
                if content.is_large:
                    entry["lfs"] = {
                        "sha256": content.sha256,
                        "size": len(content.data),
                        "pointerSize": len(content.pointer),
                    }
            siblings.append(entry)
        answer: dict[str, Any] = {
            "_id": hashlib.md5(self.id.encode(), usedforsecurity=False).hexdigest()[:24],
            "id": self.id,
            "modelId": self.id,
            "author": self.id.partition("/")[0],
            "sha": commit,
            "lastModified": self.modified,
            "createdAt": self.modified,
            "private": self.private,
            "gated": self.gated,
            "disabled": self.disabled,
            "downloads": self.downloads,
            "likes": self.likes,
            "tags": self.all_tags,
            "cardData": self.card_data(),
            "siblings": siblings,
        }
        answer |= {
            key: value
            for key, value in (("config", self.config), ("gguf", self.gguf), ("safetensors", self.safetensors))
            if value is not None
        }
        if security:
            issues = [{"path": name, "level": level} for name, level in self.flagged.items()]
            answer["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": issues}
        return answer

    def tree(self, commit: str, under: str, *, recursive: bool, expand: bool) -> list[dict[str, Any]]:
        """What `/api/models/ORG/NAME/tree/REVISION` answers."""
        prefix = f"{under}/" if under else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, content in sorted(self.history[commit].items()):
            if not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = prefix + "/".join(parts[:depth])
                entries.setdefault(folder, {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder})
            if recursive or len(parts) == 1:
                entries[name] = self.entry(name, content, expand=expand)
        return list(entries.values())

    def entry(self, name: str, content: Content, *, expand: bool = False) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": content.blob_id, "size": len(content.data), "path": name}
        if content.is_large:
            entry["lfs"] = {"oid": content.sha256, "size": len(content.data), "pointerSize": len(content.pointer)}
        if expand:
            status = self.flagged.get(name, "safe")
            scans = {"avScan": {"status": status}, "pickleImportScan": None}
            entry["securityFileStatus"] = {"status": status, **scans}
            entry["lastCommit"] = {"id": "0" * 40, "title": "Upload", "date": self.modified}
        return entry
