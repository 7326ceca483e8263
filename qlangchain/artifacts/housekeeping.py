"""Keeping the store in order: reading every byte again, removing artifacts, collecting what nothing refers to."""

from __future__ import annotations

import contextlib
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from qlangchain.artifacts import locks
from qlangchain.artifacts.atomic import read_json, sync_directory
from qlangchain.artifacts.manifest import SHA256, Manifest
from qlangchain.artifacts.store import Store
from qlangchain.errors import InvalidInputError, ModelNotFoundError, QlangchainError, StoreLockedError

_DIGEST: Final = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_SHORT_ID: Final = re.compile(r"[0-9a-f]{6,64}")
_ANY_SHA256: Final = re.compile(rb"[0-9a-f]{64}")

Kind = Literal["artifact", "blob", "partial", "note", "quarantine", "lock"]


@dataclass(frozen=True, slots=True)
class Checked:
    """What `verify` found of one file. `id` is its artifact's, "" for a blob that belongs to none."""

    id: str
    name: str
    sha256: str
    size_bytes: int
    state: Literal["ok", "changed", "missing"]


@dataclass(frozen=True, slots=True)
class Swept:
    """Something that was removed, or would be: its path in the store and the bytes that this frees."""

    kind: Kind
    path: Path
    size_bytes: int


def matching(store: Store, names: Iterable[str]) -> list[Manifest]:
    """The artifacts that these words name, each once.

    A word is an id, its beginning (6 digits or more), a repository, or a model's name; the last two also with
    `:FORMAT` behind them.

    Raises:
        ModelNotFoundError: a word names none.
        InvalidInputError: the beginning of an id fits several.

    """
    every = list(store.manifests())
    chosen: dict[str, Manifest] = {}
    for name in names:
        by_id = [manifest for manifest in every if _SHORT_ID.fullmatch(name) and manifest.id.startswith(name)]
        if len(by_id) > 1:
            raise InvalidInputError(f"{name!r} is the beginning of {len(by_id)} ids.", hint="Give more of its digits.")
        named, _, format = name.partition(":")
        found = by_id or [
            manifest
            for manifest in every
            if named
            and named in (manifest.repo, manifest.model)
            and format.upper() in ("", (manifest.format or "").upper())
        ]
        if not found:
            raise _unknown(name)
        chosen |= {manifest.id: manifest for manifest in found}
    return list(chosen.values())


def verify(store: Store, ids: Iterable[str] | None = None) -> tuple[Checked, ...]:
    """Hash the files of these artifacts, or of everything in the store, again.

    Blobs that have changed go to quarantine, names that lead elsewhere are linked anew.

    Raises:
        ModelNotFoundError: there is no such artifact.

    """
    chosen = list(store.manifests()) if ids is None else [_manifest(store, id) for id in ids]
    states: dict[str, Literal["ok", "changed", "missing"]] = {}
    checked = []
    for manifest in chosen:
        for file in manifest.files:
            if file.sha256 not in states:
                states[file.sha256] = _state(store, file.sha256)
            checked.append(Checked(manifest.id, file.name, file.sha256, file.size_bytes, states[file.sha256]))
        store.get(manifest.id)
    if ids is None:
        for path in _entries(store.root / "blobs"):
            if SHA256.fullmatch(path.name) and path.name not in states:
                size = _size(path)
                checked.append(Checked("", path.name, path.name, size, _state(store, path.name)))
    return tuple(checked)


def remove(store: Store, ids: Iterable[str], *, dry_run: bool = False) -> tuple[Swept, ...]:
    """Remove artifacts: the manifest first, so that nothing is ever named that is not there.

    Blobs that another artifact needs stay. What is already loaded by an engine stays usable to it until it ends.

    Raises:
        ModelNotFoundError: there is no such artifact; nothing was removed.
        ArtifactError: the store cannot be written.

    """
    chosen = {id: _manifest(store, id) for id in ids}
    swept = []
    with store.naming():
        for id in chosen:
            directory = store.directory_of(id)
            swept.append(Swept("artifact", directory, 0))
            if dry_run:
                continue
            directory.with_name(f"{id}.json").unlink(missing_ok=True)
            sync_directory(directory.parent)
            for note in _entries(store.root / "refs"):
                if read_json(note).get("id") == id:
                    note.unlink(missing_ok=True)
            _remove(directory)
        needed = _needed(store, without=chosen)
        for digest in sorted({file.sha256 for manifest in chosen.values() for file in manifest.files} - needed):
            swept += _sweep(store.path_of(digest), "blob", dry_run)
    return tuple(swept)


def gc(store: Store, *, dry_run: bool = False, older_than: float = 86400.0) -> tuple[Swept, ...]:
    """Collect what nothing refers to: see `Store.gc`.

    Partial files go when they are older than `older_than` seconds, or their digest is published; blobs, names and
    quarantined files when they are older; notes when what they are about is gone; locks when nobody holds them.
    What belongs to a lock that is held stays.
    """
    before = time.time() - older_than
    swept: list[Swept] = []
    for path in _entries(store.root / "partial"):
        swept += _partial(store, path, before, dry_run)
    with store.naming():
        needed = _needed(store)
        for path in _entries(store.root / "artifacts"):
            if path.suffix != ".json" and not path.with_name(f"{path.name}.json").exists() and _age(path) < before:
                swept += _sweep(path, "artifact", dry_run)
        for path in _entries(store.root / "blobs"):
            if path.name not in needed and _age(path) < before and _is_free(store, path):
                swept += _sweep(path, "blob", dry_run)
        for path in _orphaned_notes(store, before, {entry.path for entry in swept}):
            swept += _sweep(path, "note", dry_run)
    for path in _entries(store.root / "quarantine"):
        if _age(path) < before:
            swept += _sweep(path, "quarantine", dry_run)
    swept += [Swept("lock", path, 0) for path in locks.sweep(store.root / "locks", dry_run=dry_run)]
    return tuple(swept)


def _manifest(store: Store, id: str) -> Manifest:
    found = store.manifest(id)
    if found is None:
        raise _unknown(id)
    return found


def _unknown(name: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"There is no artifact {name[:80]!r} in the store.", hint="`qlangchain cache ls` lists them."
    )


def _state(store: Store, digest: str) -> Literal["ok", "changed", "missing"]:
    if not store.path_of(digest).exists():
        return "missing"
    return "ok" if store.blob(digest, afresh=True) else "changed"


def _needed(store: Store, *, without: Iterable[str] = ()) -> set[str]:
    """Every digest in a manifest, also in those that only a later version of qlangchain can read."""
    left_out = {f"{id}.json" for id in without}
    needed: set[str] = set()
    for path in _entries(store.root / "artifacts"):
        if path.suffix == ".json" and path.name not in left_out:
            with contextlib.suppress(FileNotFoundError):
                needed.update(found.decode() for found in _ANY_SHA256.findall(path.read_bytes()))
    return needed


def _partial(store: Store, path: Path, before: float, dry_run: bool) -> list[Swept]:
    digest = _owner(path)
    is_published = bool(_DIGEST.fullmatch(digest)) and store.known(digest) is not None
    if is_published or _age(path) < before:
        with contextlib.suppress(StoreLockedError), _held(store, path):
            return _sweep(path, "partial", dry_run)
    return []


def _orphaned_notes(store: Store, before: float, gone: set[Path]) -> Iterator[Path]:
    """Notes about what is gone (also that in a dry run), and those that a process was writing when it was killed."""
    root = store.root
    subjects: dict[str, Callable[[dict[str, Any]], Path]] = {
        "digests": lambda note: root / note["path"],
        "git": lambda note: store.path_of(note["sha256"]),
        "refs": lambda note: root / "artifacts" / f"{note['id']}.json",
    }
    for name in (*subjects, "artifacts", "locks", "quarantine"):
        for path in _entries(root / name):
            if path.suffix == ".tmp":
                if _age(path) < before:
                    yield path
            elif name in subjects:
                try:
                    subject = subjects[name](read_json(path))
                    is_orphan = subject in gone or not subject.exists()
                except (KeyError, TypeError, ValueError, OSError, QlangchainError):
                    is_orphan = True
                if is_orphan:
                    yield path


def _is_free(store: Store, path: Path) -> bool:
    with contextlib.suppress(StoreLockedError), _held(store, path):
        return True
    return False


def _owner(path: Path) -> str:
    """The name of the lock that whoever works on a file holds: its digest or key, whatever is appended to that."""
    return path.name.partition(".")[0]


def _held(store: Store, path: Path) -> AbstractContextManager[None]:
    if not _owner(path):  # a hidden file, which nobody's lock is about
        return contextlib.nullcontext()
    return store.lock(_owner(path), what="collecting garbage", timeout=0)


def _sweep(path: Path, kind: Kind, dry_run: bool) -> list[Swept]:
    size = _size(path)
    if not dry_run and not _remove(path):
        return []
    return [Swept(kind, path, size)]


def _remove(path: Path) -> bool:
    """Whether it is gone now; some systems keep what is open."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _size(path: Path) -> int:
    """The bytes that removing it frees. The names in an artifact's directory are mostly links, which free nothing."""
    total = 0
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        for file in path.rglob("*"):
            found = file.lstat()
            total += found.st_size if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0
    return total


def _age(path: Path) -> float:
    """When it was last written, renamed or linked, in seconds since 1970; what is gone is as young as can be."""
    try:
        found = path.lstat()
    except OSError:
        return float("inf")
    return max(found.st_mtime, found.st_ctime)


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
