"""The store: artifacts on this machine, content-addressed, verified before they are trusted, never half there.

<store>/blobs/<sha256>           the bytes of one file, read-only; see blobs.py
<store>/artifacts/<id>/...       the same bytes under their real names, for engines; links, made again where they lack
<store>/artifacts/<id>.json      the manifest, written last, so that it never names less than is there
<store>/refs/<hash>.json         what was asked for -> id, so that asking again needs no network
<store>/git/<blob id>.json       git's digest of a small file -> its SHA-256
<store>/digests/<hash>.json      SHA-256 of files, remembered while they look untouched
<store>/partial/<digest or key>  work in progress; continued, or removed by the next try or by gc
<store>/quarantine/              what was damaged, with the reason
<store>/locks/                   one lock per digest, per key, and one for names ("store")
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qlangchain.artifacts import manifest as manifests
from qlangchain.artifacts.atomic import load_json, read_json, sha256, sync_directory, unwritable, write_json
from qlangchain.artifacts.blobs import Blobs, own_inode, stamp
from qlangchain.artifacts.manifest import Manifest, StoredFile
from qlangchain.errors import ArtifactError, CorruptFileError, ProductionError, QlangchainError

if TYPE_CHECKING:
    from qlangchain.artifacts.housekeeping import Checked, Swept

logger = logging.getLogger(__name__)

_MAKING_SECONDS: Final = 3600.0  # making an artifact takes minutes; who waits longer waits for a stopped process
_NAMING_SECONDS: Final = 60.0  # names are linked in milliseconds
_FIELDS: Final = {entry.name for entry in fields(Manifest)} - {"id", "kind", "key", "files", "created", "sdk"}


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact of the store: its manifest, and the directory that holds its files under their real names."""

    manifest: Manifest
    directory: Path

    @property
    def id(self) -> str:
        """The artifact's id, 64 hex digits."""
        return self.manifest.id

    @property
    def path(self) -> Path:
        """What an engine is given: the file, the first of a split GGUF, or the directory of a checkpoint."""
        names = sorted(file.name for file in self.manifest.files)
        if len(names) == 1 or all(name.lower().endswith(".gguf") for name in names):
            return self.directory / names[0]
        return self.directory

    @property
    def digest(self) -> str:
        """The SHA-256 of a single file, or of the names and digests of several."""
        return self.manifest.digest

    @property
    def size_bytes(self) -> int:
        """The bytes of all its files."""
        return self.manifest.size_bytes


class Store(Blobs):
    """A directory of artifacts that any number of threads, processes and containers may use at once.

    A store that cannot be written gives what it has. Everything that changes which names there are holds the lock
    "store" while it does, and no longer than that takes.
    """

    def get(self, id: str) -> Stored | None:
        """Return an artifact whose files are all there and verified, or None; nothing is read again without need."""
        manifest = self.manifest(id)
        return self._ready(manifest) if manifest else None

    def manifest(self, id: str) -> Manifest | None:
        """Read the manifest of an artifact, whatever became of its files. A damaged one is set aside, a miss."""
        if not isinstance(id, str) or not manifests.SHA256.fullmatch(id):
            return None
        path = self._manifest_path(id)
        try:
            content = load_json(path)
            if manifests.is_newer(content):
                return None  # a later version of qlangchain uses this store as well
            found = manifests.parse(content)
            if found.id == id:
                return found
            why = "it belongs to another artifact"
        except OSError:
            return None
        except (ValueError, CorruptFileError) as error:
            why = str(error)
        with contextlib.suppress(ArtifactError):
            self.quarantine(path, why)
        return None

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest that can be read, by id, whatever became of the files."""
        try:
            paths = sorted((self.root / "artifacts").glob("*.json"))
        except OSError:
            return
        for path in paths:
            if found := self.manifest(path.stem):
                yield found

    def find(
        self, repo: str, *, revision: str | None = None, commit: str | None = None, format: str | None = None
    ) -> list[Stored]:
        """Return the artifacts of a hub repository that are here and verified, the newest first. None means any."""
        wanted = [
            found
            for found in self.manifests()
            if found.repo == repo
            and (revision is None or revision in (found.revision, found.commit))
            and (commit is None or found.commit == commit)
            and (format is None or (found.format or "").upper() == format.upper())
        ]
        wanted.sort(key=lambda found: (found.created, found.id), reverse=True)
        return [ready for found in wanted if (ready := self._ready(found))]

    def resolve(self, asked: str, *, revision: str | None = None, format: str | None = None) -> Stored | None:
        """Return what the same words led to before (see `remember`), or None. No network is used."""
        path, words = self._ref(asked, revision, format)
        note = read_json(path)
        if note.get("asked") != words or not isinstance(note.get("id"), str):
            return None
        return self.get(note["id"])

    def remember(
        self, asked: str, id: str, *, revision: str | None = None, format: str | None = None, renew: bool = True
    ) -> None:
        """Let `resolve` lead from these words to the artifact `id` from now on.

        `asked` is the model as the user wrote it, which need not be the repository that the files came from.
        Without `renew` what was remembered before stays.
        """
        path, words = self._ref(asked, revision, format)
        if not renew and self.resolve(asked, revision=revision, format=format):
            return
        try:
            write_json(path, {"asked": words, "id": id})
        except OSError as error:
            raise unwritable(self.root, error) from error

    def add(self, manifest: Manifest, blobs: Mapping[str, Path] | None = None, *, renew: bool = True) -> Stored:
        """Enter an artifact: its names are linked, then its manifest is written. The blobs come first.

        `blobs` maps file names to files whose bytes have been hashed and that are to be published here; what it
        leaves out is here already, by `publish_blob`. From now on `resolve` leads from the repository, its revision
        and the format to this artifact; without `renew` only where it led nowhere before.

        Raises:
            ArtifactError: a blob is not here, or the store cannot be written (DiskFullError: no room).

        """
        by_name = {file.name: file for file in manifest.files}
        for name, path in (blobs or {}).items():
            if path != self.path_of(by_name[name].sha256):
                self.publish_blob(path, by_name[name].sha256)
        with self.naming():
            for file in manifest.files:
                blob = self.blob(file.sha256)
                if blob is None:
                    raise ArtifactError(
                        f"{file.name} of {manifest.model or manifest.repo or manifest.id} is not in the store.",
                        hint="Call again: it was removed or damaged while the other files came.",
                    )
                if blob.stat().st_size != file.size_bytes:
                    raise CorruptFileError(f"{file.name} does not have {file.size_bytes} bytes.", hint="Call again.")
            try:
                self._link(manifest)
                write_json(self._manifest_path(manifest.id), manifest.to_dict(), indent=1)
                if manifest.repo:
                    for revision in {manifest.revision, manifest.commit}:
                        self.remember(
                            manifest.repo, manifest.id, revision=revision, format=manifest.format, renew=renew
                        )
            except OSError as error:
                raise unwritable(self.root, error) from error
        return Stored(manifest, self.directory_of(manifest.id))

    def make(
        self, key: str, about: Mapping[str, Any], write: Callable[[Path], object], *, name: str = "model.gguf"
    ) -> Stored:
        """Return what is stored under `key`; where there is nothing, have `write` fill a path and publish that.

        `write` makes a file or a directory at the path it is given, whose last part is `name`. `about` fills the
        manifest; what is no field of it is kept among the header facts. Other processes that want the same key wait
        for the first. When `write` raises, or the process is killed, nothing is published.

        Raises:
            DiskFullError: the disk is full; what was half-written is gone.
            ProductionError: `write` made nothing, or something other than files and directories.
            StoreLockedError: another process has held the lock for an hour.
            ArtifactError: the store cannot be written.

        """
        fitting = {field: value for field, value in about.items() if field in _FIELDS}
        facts = {field: value for field, value in about.items() if field not in _FIELDS}
        draft = Manifest.produced(
            key=key,
            files=[StoredFile(name, 0, "0" * 64)],
            **{**fitting, "header": {**fitting.get("header", {}), **facts}},
        )  # before any work: what is wrong with the description should not cost an hour
        id = draft.id
        found = self.get(id)  # without the lock: a store that cannot be written gives what it has
        if found:
            return found
        with self.lock(f"make-{id}", what=f"making {name}", timeout=_MAKING_SECONDS):
            found = self.get(id)
            if found:
                return found
            work = self.root / "partial" / f"make-{id}"
            try:
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
                write(work / name)
                return self._publish(draft, work / name)
            except OSError as error:
                raise unwritable(self.root, error) from error
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def list(self) -> tuple[Stored, ...]:
        """Every artifact with a manifest, the newest first; whether its files are whole is `verify`'s question."""
        found = sorted(self.manifests(), key=lambda manifest: (manifest.created, manifest.id), reverse=True)
        return tuple(Stored(manifest, self.directory_of(manifest.id)) for manifest in found)

    def verify(self, ids: Iterable[str] | None = None) -> tuple[Checked, ...]:
        """Read every byte of these artifacts (default: of all) again; what has changed goes to quarantine."""
        from qlangchain.artifacts import housekeeping

        return housekeeping.verify(self, ids)

    def remove(self, ids: Iterable[str], *, dry_run: bool = False) -> tuple[Swept, ...]:
        """Remove artifacts, and the blobs that no other artifact needs; returns what was removed, with sizes."""
        from qlangchain.artifacts import housekeeping

        return housekeeping.remove(self, ids, dry_run=dry_run)

    def gc(self, *, dry_run: bool = False, older_than: float = 86400.0) -> tuple[Swept, ...]:
        """Remove what nothing refers to and nobody is working on; returns what was removed, with sizes.

        `older_than` is in seconds: what is younger may belong to work that is under way.
        """
        from qlangchain.artifacts import housekeeping

        return housekeeping.gc(self, dry_run=dry_run, older_than=older_than)

    def adopt(self, digest: str, size: int) -> Path | None:
        """Take a file from the Hugging Face cache of this machine; see `adopt.adopt`."""
        from qlangchain.artifacts import adopt

        return adopt.adopt(self, digest, size)

    def naming(self) -> AbstractContextManager[None]:
        """Hold the lock under which names of artifacts come and go."""
        return self.lock("store", what="changing the names in the store", timeout=_NAMING_SECONDS)

    def directory_of(self, id: str) -> Path:
        """Where the files of an artifact have their real names."""
        return self.root / "artifacts" / id

    def _manifest_path(self, id: str) -> Path:
        return self.root / "artifacts" / f"{id}.json"

    def _ready(self, manifest: Manifest) -> Stored | None:
        """The artifact with every blob trusted and every name leading to its blob; None where that cannot be."""
        for file in manifest.files:
            blob = self.blob(file.sha256)
            if blob is None:
                return None
            name = self.directory_of(manifest.id) / file.name
            if _same(name, blob):
                continue
            try:
                with self.naming():
                    self._link(manifest)
            except (OSError, QlangchainError):
                # A copy of a store, which cannot be written: its names may be files of their own.
                if not name.is_file() or self.digest(name) != file.sha256:
                    return None
        return Stored(manifest, self.directory_of(manifest.id))

    def _link(self, manifest: Manifest) -> None:
        """Give every blob its real name: a hard link, or a symbolic one where the file system has none."""
        directory = self.directory_of(manifest.id)
        for file in manifest.files:
            name, blob = directory / file.name, self.path_of(file.sha256)
            if _same(name, blob):
                continue
            name.parent.mkdir(parents=True, exist_ok=True)
            new = directory / f".{hashlib.sha256(file.name.encode()).hexdigest()[:16]}.new"
            new.unlink(missing_ok=True)
            try:
                os.link(blob, new)
            except OSError:
                new.symlink_to(os.path.relpath(blob, name.parent))
            os.replace(new, name)
        sync_directory(directory)

    def _publish(self, draft: Manifest, target: Path) -> Stored:
        files: dict[str, Path] = {}
        stored = []
        for path in _walk(target):
            own_inode(path)
            name = path.relative_to(target).as_posix() if target.is_dir() else target.name
            stored.append(StoredFile(name, stamp(path)[0], sha256(path)))
            files[name] = path
        manifests.check_names(files)
        return self.add(replace(draft, files=tuple(stored)), files)

    def _ref(self, asked: str, revision: str | None, format: str | None) -> tuple[Path, dict[str, str | None]]:
        words = {"model": asked, "revision": revision, "format": format.upper() if format else None}
        name = hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]
        return self.root / "refs" / f"{name}.json", words


def _same(name: Path, blob: Path) -> bool:
    try:
        return name.samefile(blob)
    except OSError:
        return False


def _walk(target: Path) -> list[Path]:
    """Every file of what was made, sorted; raises ProductionError where there are others, or none."""
    files = []
    found = [target, *sorted(target.rglob("*"))] if os.path.lexists(target) else []
    for path in found:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            files.append(path)
        elif not stat.S_ISDIR(mode):
            raise ProductionError(f"{path.name} is no regular file.", hint="Only files and directories are stored.")
    if not files:
        raise ProductionError("Nothing was made.", hint="This is a fault of qlangchain; please report it.")
    return files
