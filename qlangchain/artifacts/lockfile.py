"""The lock file, `qlangchain.lock`: exactly which bytes an application's models are made of.

It is TOML, sorted, and the same for the same content, so that it can be kept under version control and read in a
review. What it pins can be fetched again, or found in the store, without asking what a branch means today.
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qlangchain.artifacts.atomic import unwritable, write_text
from qlangchain.artifacts.manifest import Manifest, stored_file
from qlangchain.errors import CorruptFileError, InvalidInputError, ModelNotFoundError, UnsafeSourceError
from qlangchain.types import Method, Origin

NAME: Final = "qlangchain.lock"
_VERSION: Final = 1
_MAX_BYTES: Final = 16 * 1024 * 1024
_MAX_ENTRIES: Final = 10_000
_WORDS: Final = ("model", "kind", "repo", "commit", "revision", "key", "method", "format", "licence")


@dataclass(frozen=True, slots=True)
class Locked:
    """One pinned artifact: `model` is what the application asks for, `manifest` what that is, down to the digests.

    Of the manifest only what identifies it is kept in the file; when and by what it was fetched is not.
    """

    model: str
    manifest: Manifest

    @property
    def id(self) -> str:
        """The artifact's id in any store: `Store.get` finds it without a network."""
        return self.manifest.id

    @property
    def place(self) -> tuple[str, str, str]:
        """What there is one entry for: the model as asked, the method, the format."""
        return self.model, str(self.manifest.method or ""), self.manifest.format or ""


@dataclass(frozen=True, slots=True)
class Difference:
    """How one lock file differs from another. `changed` holds pairs of the old and the new entry."""

    added: tuple[Locked, ...] = ()
    removed: tuple[Locked, ...] = ()
    changed: tuple[tuple[Locked, Locked], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def read(path: Path) -> tuple[Locked, ...]:
    """Read a lock file, sorted.

    Raises:
        ModelNotFoundError: there is none.
        CorruptFileError: it is no lock file, or one of its entries cannot be right.

    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ModelNotFoundError(
            f"{path} cannot be read: {error.strerror}.", hint="Write it with `qlangchain pull MODEL --lock`."
        ) from error
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError("it is too large")
        document = tomllib.loads(content.decode("utf-8"))
        if document.get("version") != _VERSION or set(document) - {"version", "artifact"}:
            raise ValueError(f"expected version = {_VERSION} and [[artifact]] tables")
        tables = document.get("artifact", [])
        if not isinstance(tables, list) or len(tables) > _MAX_ENTRIES:
            raise ValueError("artifact is no array of tables")
        entries = [_entry(table) for table in tables]
        if len({entry.place for entry in entries}) < len(entries):
            raise ValueError("two entries pin the same model")
    except (ValueError, RecursionError, CorruptFileError) as error:
        why = error.message if isinstance(error, CorruptFileError) else str(error)
        raise CorruptFileError(
            f"{path} is no lock file that can be used: {why[:300]}",
            hint="Restore it from version control, or write it anew.",
        ) from error
    return tuple(sorted(entries, key=lambda entry: entry.place))


def write(path: Path, entries: Iterable[Locked]) -> None:
    """Write a lock file, whole or not at all; raises InvalidInputError where two entries pin the same model."""
    ordered = sorted(entries, key=lambda entry: entry.place)
    for one, other in itertools.pairwise(ordered):
        if one.place == other.place:
            raise InvalidInputError(f"{one.model!r} is pinned twice.", hint="Use merge.")
    parts = [
        "# Written by qlangchain. It pins what the models of this application are made of.",
        f"version = {_VERSION}",
    ]
    text = "\n".join([*parts, *map(_table, ordered)]) + "\n"
    try:
        write_text(path, text)
    except OSError as error:
        raise unwritable(path.parent, error) from error


def merge(entries: Iterable[Locked], new: Iterable[Locked]) -> tuple[Locked, ...]:
    """Both together, sorted; where both pin the same model in the same format, the new one counts."""
    by_place = {entry.place: entry for entry in (*entries, *new)}
    return tuple(by_place[place] for place in sorted(by_place))


def diff(old: Iterable[Locked], new: Iterable[Locked]) -> Difference:
    """What changed from one lock file to another: by what is pinned, whatever else is written there."""
    before, after = ({entry.place: entry for entry in entries} for entries in (old, new))
    return Difference(
        added=tuple(after[place] for place in sorted(set(after) - set(before))),
        removed=tuple(before[place] for place in sorted(set(before) - set(after))),
        changed=tuple(
            (before[place], after[place])
            for place in sorted(set(before) & set(after))
            if _table(before[place]) != _table(after[place])
        ),
    )


def _entry(table: Any) -> Locked:
    if not isinstance(table, dict) or not isinstance(table.get("files"), list):
        raise CorruptFileError("an entry lists no files")
    unknown = set(table) - {*_WORDS, "files"}
    if unknown:
        raise CorruptFileError(f"{min(unknown)!r} is not known")
    model = table.get("model")
    if not isinstance(model, str) or not model:
        raise CorruptFileError("an entry names no model")
    try:
        given: dict[str, Any] = {name: table[name] for name in ("revision", "licence", "format") if name in table}
        given |= {"files": [stored_file(entry) for entry in table["files"]], "model": model}
        if "method" in table:
            given["method"] = Method(table["method"])
        kind = table.get("kind")
        if kind == Origin.PRODUCED:
            return Locked(model, Manifest.produced(key=table.get("key", ""), **given))
        if kind == Origin.DOWNLOADED:
            return Locked(
                model, Manifest.downloaded(repo=table.get("repo", ""), commit=table.get("commit", ""), **given)
            )
        raise CorruptFileError(f"{model[:80]!r} is of the unknown kind {str(kind)[:80]!r}")
    except (InvalidInputError, UnsafeSourceError) as error:
        raise CorruptFileError(f"{model[:80]!r}: {error.message}") from error


def _table(entry: Locked) -> str:
    found = entry.manifest
    values = {name: getattr(found, name, None) for name in _WORDS} | {"model": entry.model}
    lines = [f"{name} = {_quoted(str(value))}" for name, value in values.items() if value is not None]
    files = sorted(found.files, key=lambda file: file.name)
    rows = [
        f"  {{ name = {_quoted(file.name)}, size = {file.size_bytes}, sha256 = {_quoted(file.sha256)} }},"
        for file in files
    ]
    return "\n".join(["", "[[artifact]]", *lines, "files = [", *rows, "]"])


def _quoted(text: str) -> str:
    # A JSON string is a TOML string, but for the one control character that JSON lets stand.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
