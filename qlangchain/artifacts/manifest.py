"""Manifests: what an artifact is, where it came from, and the digests of its files.

A manifest is written after everything that it names is there, and it is read as if a stranger had written it:
bounded, every field checked, its id computed anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from qlangchain import __version__
from qlangchain.artifacts.names import refuse_collisions, safe_name
from qlangchain.errors import CorruptFileError, InvalidInputError, UnsafeSourceError
from qlangchain.types import Method, Origin

SCHEMA: Final = 1
MAX_FILES: Final = 10_000
MAX_SIZE: Final = 1 << 50  # bytes of one file; a petabyte is a lie
_MAX_TEXT: Final = 4096
_MAX_FACTS: Final = 2000  # values in the header facts, all levels together
_MAX_DEPTH: Final = 6
SHA256: Final = re.compile(r"[0-9a-f]{64}")
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_REPO: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?")
_HALF: Final = re.compile("[\ud800-\udfff]")  # half of a surrogate pair is no text
KEY: Final = re.compile(r"[0-9a-z]{1,128}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an artifact: its POSIX path there, its size in bytes, its SHA-256 in hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One artifact. Make it with `downloaded` or `produced`, which compute its id.

    `revision` is the branch or tag that was asked for and `commit` what that was then; `key` names what a produced
    artifact was made from and how. `format` is such as Q4_K_M or W4A16, `bits` the bits per weight, `header` facts
    from the files' headers (architecture, parameters, context, vocabulary). `created` is in ISO 8601, UTC.
    """

    id: str
    kind: Origin
    files: tuple[StoredFile, ...]
    model: str = ""
    repo: str | None = None
    commit: str | None = None
    revision: str | None = None
    key: str | None = None
    licence: str | None = None
    method: Method | None = None
    format: str | None = None
    bits: float | None = None
    header: Mapping[str, Any] = field(default_factory=dict, hash=False)
    source: str | None = None
    tool: str | None = None
    tool_version: str | None = None
    created: str = ""
    sdk: str = ""

    @classmethod
    def downloaded(cls, *, repo: str, commit: str, files: Iterable[StoredFile], **rest: Any) -> Manifest:
        """The manifest of files fetched from one commit of a repository. `rest` are further fields.

        Raises InvalidInputError or UnsafeSourceError where a field cannot be right.
        """
        given = tuple(files)
        id = _downloaded_id(repo, commit, given)
        return _complete(id=id, kind=Origin.DOWNLOADED, repo=repo, commit=commit, files=given, **rest)

    @classmethod
    def produced(cls, *, key: str, files: Iterable[StoredFile], **rest: Any) -> Manifest:
        """The manifest of what was made here under a production key. `rest` are further fields.

        Raises InvalidInputError or UnsafeSourceError where a field cannot be right.
        """
        return _complete(id=produced_id(key), kind=Origin.PRODUCED, key=key, files=tuple(files), **rest)

    @property
    def size_bytes(self) -> int:
        """The bytes of all files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def digest(self) -> str:
        """What names the bytes: the SHA-256 of a single file, and of the names and digests of several."""
        return self.files[0].sha256 if len(self.files) == 1 else _digest("files", *_lines(self.files))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it; `parse` is the way back."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        files = [{"name": file.name, "size": file.size_bytes, "sha256": file.sha256} for file in self.files]
        return {"schema": SCHEMA, **plain, "header": dict(self.header), "files": files}


def produced_id(key: str) -> str:
    """The id of the artifact made under `key`; raises InvalidInputError where that is no key."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise InvalidInputError(f"{str(key)[:80]!r} is no production key.", hint="Use at most 128 of 0-9 and a-z.")
    return _digest("produced", key)


def is_newer(content: Any) -> bool:
    """Whether a later version of qlangchain wrote this manifest, which this one therefore leaves alone."""
    schema = content.get("schema") if isinstance(content, dict) else None
    return type(schema) is int and schema > SCHEMA


def parse(content: Any) -> Manifest:
    """Read a manifest that may come from anywhere.

    Raises:
        CorruptFileError: a field is missing, unknown, of the wrong kind or too large, or the id is not its own.

    """
    try:
        if not isinstance(content, dict):
            _refuse("content", content)
        values = dict(content)
        if type(values.pop("schema", None)) is not int or content["schema"] != SCHEMA:
            _refuse("schema", content.get("schema"))
        unknown = set(values) - {entry.name for entry in fields(Manifest)}
        if unknown:
            _refuse("field", min(unknown))
        listed = values.pop("files", None)
        if not isinstance(listed, list):
            _refuse("files", listed)
        values["files"] = tuple(map(stored_file, listed[: MAX_FILES + 1]))
        values["kind"] = Origin(str(values.get("kind")))
        values["method"] = None if values.get("method") is None else Method(values["method"])
        manifest = Manifest(**values)
        _check(manifest)
    except (InvalidInputError, UnsafeSourceError) as error:
        raise CorruptFileError(f"It is no manifest: {error.message}", hint="Fetch or make it again.") from error
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise CorruptFileError(f"It is no manifest: {error!s:.200}.", hint="Fetch or make it again.") from error
    return manifest


def check_names(names: Iterable[str]) -> None:
    """Refuse file names that leave their directory, or that meet in it on some system; raises UnsafeSourceError."""
    given = [safe_name(name) for name in names]
    refuse_collisions(given)


def _complete(**values: Any) -> Manifest:
    manifest = Manifest(**{"created": datetime.now(UTC).isoformat(timespec="seconds"), "sdk": __version__, **values})
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    if not 0 < len(manifest.files) <= MAX_FILES:
        _refuse("files", f"{len(manifest.files)} files")
    for file in manifest.files:
        if type(file.size_bytes) is not int or not 0 <= file.size_bytes <= MAX_SIZE:
            _refuse("size", file.size_bytes)
        if not isinstance(file.sha256, str) or not SHA256.fullmatch(file.sha256):
            _refuse("sha256", file.sha256)
    check_names(file.name for file in manifest.files)
    for name in ("model", "created", "sdk"):
        _text(name, getattr(manifest, name))
    for name in ("repo", "commit", "revision", "key", "licence", "format", "source", "tool", "tool_version"):
        if getattr(manifest, name) is not None:
            _text(name, getattr(manifest, name))
    bits = manifest.bits
    if bits is not None and (type(bits) not in (int, float) or not 0 < bits <= 64):
        _refuse("bits", bits)
    if not isinstance(manifest.method, Method | None):
        _refuse("method", manifest.method)
    if not isinstance(manifest.header, Mapping):
        _refuse("header", manifest.header)
    _facts(manifest.header, [0], 0)
    if manifest.kind is Origin.DOWNLOADED:
        expected = _downloaded_id(manifest.repo, manifest.commit, manifest.files)
    elif manifest.kind is Origin.PRODUCED:
        expected = produced_id(manifest.key or "")
    else:
        _refuse("kind", manifest.kind)
    if manifest.id != expected:
        _refuse("id", manifest.id)


def stored_file(entry: Any) -> StoredFile:
    """Read one entry of `files`: name, size and sha256; raises InvalidInputError where it is something else."""
    if not isinstance(entry, dict) or set(entry) != {"name", "size", "sha256"} or not isinstance(entry["name"], str):
        _refuse("file", entry)
    return StoredFile(entry["name"], entry["size"], entry["sha256"])


def _facts(value: Any, count: list[int], depth: int) -> None:
    count[0] += 1
    if count[0] > _MAX_FACTS or depth > _MAX_DEPTH:
        _refuse("header", "too many facts")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _text("header", name)
            _facts(inner, count, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _facts(inner, count, depth + 1)
    elif isinstance(value, str):
        _text("header", value)
    elif type(value) is float:
        if not math.isfinite(value):  # no JSON
            _refuse("header", value)
    elif value is not None and type(value) not in (bool, int):
        _refuse("header", value)


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or _HALF.search(value):
        _refuse(name, value)


def _downloaded_id(repo: Any, commit: Any, files: tuple[StoredFile, ...]) -> str:
    if not isinstance(repo, str) or not _REPO.fullmatch(repo):
        _refuse("repo", repo)
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        _refuse("commit", commit)
    return _digest("downloaded", repo, commit, *_lines(files))


def _lines(files: Iterable[StoredFile]) -> list[str]:
    return sorted(f"{file.sha256} {file.name}" for file in files)


def _digest(*parts: str) -> str:
    # JSON keeps the parts apart, whatever they hold.
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _refuse(name: str, value: Any) -> NoReturn:
    shown = repr(value)
    raise InvalidInputError(
        f"{name} cannot be {shown[:80]}.", hint="A manifest is made by Manifest.downloaded or Manifest.produced."
    )
