"""The store: whole or not at all, once, under real names, and trusted only while it looks untouched."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.storing import COMMIT, add, forget, manifest_of, overwrite, publish

from qlangchain.artifacts import blobs as blobs_module
from qlangchain.artifacts import store as store_module
from qlangchain.artifacts.atomic import read_json, sha256, write_json
from qlangchain.artifacts.manifest import Manifest, StoredFile
from qlangchain.artifacts.store import Store
from qlangchain.errors import (
    ArtifactError,
    CorruptFileError,
    DiskFullError,
    InvalidInputError,
    ProductionError,
    StoreLockedError,
    UnsafeSourceError,
)
from qlangchain.types import Method, Origin

KEY = "0123abcd"
BYTES = b"GGUF and the rest"
DIGEST = hashlib.sha256(BYTES).hexdigest()
GIT = hashlib.sha1(b"blob %d\0" % len(BYTES) + BYTES).hexdigest()
WAIT = 30.0  # seconds; only a failing test waits so long


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def writes(content: bytes = BYTES) -> Callable[[Path], object]:
    return lambda target: target.write_bytes(content)


def fails(error: BaseException) -> Callable[[Path], object]:
    def write(target: Path) -> None:
        target.write_bytes(BYTES[:5])
        raise error

    return write


def never(target: Path) -> None:
    raise AssertionError("this is in the store already")


def places(store: Store) -> set[str]:
    """The directories of the store that hold files, without notes and locks."""
    found = (path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file())
    return {path.parts[0] for path in found} - {"locks", "digests"}


# Blobs.


def test_nothing_is_created_before_it_is_needed(store: Store) -> None:
    assert store.blob(DIGEST) is None
    assert store.known(GIT) is None
    assert store.get("a" * 64) is None
    assert store.find("org/name") == []
    assert store.resolve("org/name") is None
    assert store.list() == ()
    assert store.free_bytes() > 0
    assert not store.root.exists()


def test_a_blob_is_named_by_its_bytes_and_read_only(store: Store) -> None:
    path = publish(store, BYTES, also=GIT)
    assert path == store.root / "blobs" / DIGEST
    assert path.read_bytes() == BYTES
    assert path.stat().st_mode & 0o777 == 0o444
    assert store.blob(DIGEST) == store.known(DIGEST) == store.known(GIT) == path
    assert not list((store.root / "partial").iterdir())


def test_a_blob_is_published_once(store: Store) -> None:
    inode = publish(store, BYTES).stat().st_ino
    assert publish(store, BYTES).stat().st_ino == inode
    assert not list((store.root / "partial").iterdir())


def test_bytes_that_another_name_leads_to_are_copied(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(BYTES)
    os.link(mine, store.partial(DIGEST))
    path = store.publish_blob(store.partial(DIGEST), DIGEST)
    mine.write_bytes(b"changed")
    assert path.read_bytes() == BYTES
    assert mine.stat().st_mode & 0o200


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_only_regular_files_are_published(store: Store, tmp_path: Path, kind: str) -> None:
    partial = store.partial(DIGEST)
    if kind == "link":
        (tmp_path / "mine").write_bytes(BYTES)
        partial.symlink_to(tmp_path / "mine")
    else:
        partial.mkdir()
    with pytest.raises(UnsafeSourceError):
        store.publish_blob(partial, DIGEST)
    assert store.blob(DIGEST) is None


HOSTILE = [
    "", "..", "../" * 3 + "etc/passwd", "/etc/passwd", "A" * 64, "g" * 64, "a" * 63, "a" * 65, "a" * 41, "a" * 39,
    "a" * 64 + "\n", "a" * 40 + "/", "\0" * 64, "．" * 64, "a" * 32 + "/../" + "a" * 28, "٠" * 64, None, 5,
    b"a" * 64, ("a" * 64,), ".." + "a" * 62, "C:" + "a" * 62, "a" * 62 + "\\x",
]  # fmt: skip


@pytest.mark.parametrize("digest", HOSTILE, ids=repr)
def test_a_hostile_digest_never_becomes_a_path(store: Store, tmp_path: Path, digest: str) -> None:
    partial = tmp_path / "partial"
    partial.write_bytes(BYTES)
    for call in (
        lambda: store.blob(digest),
        lambda: store.known(digest),
        lambda: store.partial(digest),
        lambda: store.publish_blob(partial, digest),
        lambda: store.adopt(digest, 5),
    ):
        with pytest.raises(UnsafeSourceError):
            call()
    if digest is not None:
        with pytest.raises(UnsafeSourceError):
            store.publish_blob(partial, DIGEST, also=digest)
    assert store.get(digest) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["partial"]


@pytest.mark.parametrize("content", [b"GGUF and the rust", b"", BYTES + b"\x00"])
def test_a_blob_that_changed_goes_to_quarantine(store: Store, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    path = publish(store, BYTES)
    overwrite(path, content)
    with caplog.at_level(logging.WARNING):
        assert store.blob(DIGEST) is None
    assert DIGEST in caplog.text
    aside = [entry for entry in (store.root / "quarantine").iterdir() if entry.suffix != ".json"]
    assert [entry.read_bytes() for entry in aside] == [content]
    why = read_json(aside[0].with_name(aside[0].name + ".why.json"))["why"]
    assert hashlib.sha256(content).hexdigest() in why
    assert publish(store, BYTES).read_bytes() == BYTES


def test_a_blob_is_read_again_only_when_it_looks_touched(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(store, BYTES)
    forget()
    read = count_reading(monkeypatch)
    assert store.blob(DIGEST) == path
    assert read == []
    for touch in (lambda: os.utime(path, ns=(1, 1)), lambda: path.chmod(0o644)):
        read.clear()
        touch()
        forget()
        assert store.blob(DIGEST) == path
        assert store.blob(DIGEST) == path
        assert read == [path]
        assert path.stat().st_mode & 0o777 == 0o444
    assert store.blob(DIGEST, afresh=True) == path
    assert read == [path, path]


def test_a_change_behind_an_unchanged_stamp_is_found_by_verifying(store: Store) -> None:
    path = publish(store, BYTES)
    stat = path.stat()
    overwrite(path, BYTES[::-1])
    path.chmod(0o444)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.blob(DIGEST) == path
    (checked,) = store.verify()
    assert (checked.state, checked.size_bytes) == ("changed", len(BYTES))
    assert store.blob(DIGEST) is None


def test_a_link_in_the_place_of_a_blob_is_none(store: Store, tmp_path: Path) -> None:
    path = publish(store, BYTES)
    (tmp_path / "mine").write_bytes(BYTES)
    path.unlink()
    path.symlink_to(tmp_path / "mine")
    assert store.blob(DIGEST) is None
    assert publish(store, BYTES).is_symlink() is False


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha256": 5}', '{"sha256": "../../x"}', "[" * 100_000, "\x00"])
def test_a_damaged_note_of_gits_digest_is_a_miss(store: Store, content: str) -> None:
    publish(store, BYTES, also=GIT)
    (store.root / "git" / f"{GIT}.json").write_text(content)
    assert store.known(GIT) is None


def test_quarantine_takes_what_is_gone_for_granted(store: Store) -> None:
    store.quarantine(store.partial(DIGEST), "it is not there")
    assert places(store) == set()


# Locks.


def test_a_lock_names_its_holder(store: Store) -> None:
    with store.lock(DIGEST, what="fetching model.gguf", timeout=1):
        with pytest.raises(StoreLockedError, match=f"Process {os.getpid()} has been fetching model.gguf") as caught:
            store.lock(DIGEST, what="fetching it too", timeout=0.05).__enter__()
        assert caught.value.is_retryable
        with store.lock("another", what="something else", timeout=0):
            pass
    with store.lock(DIGEST, what="fetching it too", timeout=0):
        pass


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "a\0", "x" * 200, "é"])
def test_a_lock_needs_a_plain_name(store: Store, name: str) -> None:
    with pytest.raises(InvalidInputError):
        store.lock(name, what="x", timeout=0).__enter__()
    assert not store.root.exists()


# Artifacts.


def test_an_artifact_has_its_files_under_their_names(store: Store) -> None:
    files = {"model-00001-of-00002.gguf": b"one", "model-00002-of-00002.gguf": b"two"}
    stored = add(store, files, format="Q4_K_M", method=Method.GGUF, licence="apache-2.0", header={"layers": 4})
    assert {path.name: path.read_bytes() for path in stored.directory.iterdir()} == files
    assert stored.path == stored.directory / "model-00001-of-00002.gguf"
    assert stored.size_bytes == 6
    assert all(path.stat().st_nlink == 2 for path in stored.directory.iterdir())
    forget()
    again = Store(store.root).get(stored.id)
    assert again == stored
    assert again.manifest.licence == "apache-2.0" and again.manifest.header == {"layers": 4}
    assert store.list() == (stored,)


def test_sub_folders_are_kept_and_a_checkpoint_is_its_directory(store: Store) -> None:
    stored = add(store, {"config.json": b"{}", "sub/model.safetensors": b"weights"})
    assert stored.path == stored.directory
    assert (stored.path / "sub" / "model.safetensors").read_bytes() == b"weights"
    single = add(store, {"Q4_0/model.gguf": b"alone"})
    assert single.path == single.directory / "Q4_0" / "model.gguf"
    assert single.digest == hashlib.sha256(b"alone").hexdigest()
    assert stored.digest not in (single.digest, stored.id)


def test_equal_files_are_kept_once(store: Store) -> None:
    one = add(store, {"a.gguf": BYTES})
    two = add(store, {"b.gguf": BYTES}, repo="other/name")
    assert one.id != two.id
    assert one.digest == two.digest == DIGEST
    assert len(list((store.root / "blobs").iterdir())) == 1


def test_where_links_cannot_be_symbolic_ones_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    stored = add(store, {"sub/model.gguf": BYTES})
    assert stored.path.is_symlink()
    assert stored.path.read_bytes() == BYTES
    assert not stored.path.readlink().is_absolute()
    assert store.get(stored.id) == stored


def test_names_that_lack_or_lead_elsewhere_are_linked_anew(store: Store) -> None:
    stored = add(store, {"a.gguf": BYTES, "b.gguf": b"b"})
    (stored.directory / "a.gguf").unlink()
    (stored.directory / "b.gguf").unlink()
    (stored.directory / "b.gguf").write_bytes(b"something else")
    assert store.get(stored.id) == stored
    assert (stored.directory / "a.gguf").read_bytes() == BYTES
    assert (stored.directory / "b.gguf").read_bytes() == b"b"


def test_a_blob_that_was_replaced_is_reached_by_its_name(store: Store) -> None:
    stored = add(store, {"a.gguf": BYTES})
    overwrite(stored.path, b"changed through its name")
    assert store.get(stored.id) is None
    publish(store, BYTES)
    assert store.get(stored.id) == stored
    assert stored.path.read_bytes() == BYTES


def test_what_is_not_whole_is_not_added(store: Store) -> None:
    with pytest.raises(ArtifactError, match="is not in the store"):
        store.add(manifest_of({"a.gguf": BYTES}))
    publish(store, BYTES)
    lying = Manifest.downloaded(repo="org/name", commit=COMMIT, files=[StoredFile("a.gguf", 5, DIGEST)])
    with pytest.raises(CorruptFileError):
        store.add(lying)
    assert store.list() == ()


def test_files_can_be_published_and_added_at_once(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(BYTES)
    manifest = manifest_of({"a.gguf": BYTES})
    stored = store.add(manifest, {"a.gguf": mine})
    assert stored.path.read_bytes() == BYTES
    assert store.add(manifest, {"a.gguf": store.path_of(DIGEST)}) == stored


def test_finding_by_repository_revision_commit_and_format(store: Store) -> None:
    old = add(store, {"a.gguf": b"old"}, revision="main", format="Q4_0", created="2026-01-01T00:00:00+00:00")
    new = add(store, {"a.gguf": b"new"}, revision="main", format="Q8_0", commit="d" * 40)
    assert store.find("org/name") == [new, old]
    assert store.find("org/name", format="q4_0") == [old]
    assert store.find("org/name", commit="d" * 40) == store.find("org/name", revision="d" * 40) == [new]
    assert store.find("org/name", revision="main", format="Q8_0") == [new]
    assert store.find("org/other") == store.find("org/name", revision="v1") == []
    store.path_of(hashlib.sha256(b"new").hexdigest()).unlink()
    assert store.find("org/name") == [old]


def test_what_was_asked_before_is_known_without_a_network(store: Store) -> None:
    stored = add(store, {"a.gguf": BYTES}, revision="main", format="Q4_0")
    assert store.resolve("org/name", revision="main", format="q4_0") == stored
    assert store.resolve("org/name", revision=COMMIT, format="Q4_0") == stored
    assert store.resolve("org/name", revision="main") is None
    store.remember("Base/Model", stored.id, format="Q4_0")
    assert store.resolve("Base/Model", format="Q4_0") == stored
    moved = add(store, {"a.gguf": b"newer"}, revision="main", format="Q4_0", commit="d" * 40)
    assert store.resolve("org/name", revision="main", format="Q4_0") == moved
    assert store.resolve("org/name", revision=COMMIT, format="Q4_0") == stored
    store.remember("Base/Model", moved.id, format="Q4_0", renew=False)
    assert store.resolve("Base/Model", format="Q4_0") == stored


@pytest.mark.parametrize("asked", ["../../x", "a\0b", "\ud800", "x" * 10_000, ""])
def test_any_words_can_be_remembered(store: Store, asked: str) -> None:
    stored = add(store, {"a.gguf": BYTES})
    store.remember(asked, stored.id)
    assert store.resolve(asked) == stored


def test_a_damaged_reference_is_a_miss(store: Store) -> None:
    stored = add(store, {"a.gguf": BYTES}, revision="main", format="Q4_0")
    for note in (store.root / "refs").iterdir():
        for content in ("", "[]", "{", '{"id": 5}', '{"id": "../../x"}', f'{{"id": "{stored.id}"}}', "[" * 100_000):
            note.write_text(content)
            assert store.resolve("org/name", revision="main", format="Q4_0") in (None, stored)
    assert store.resolve("org/name", revision="main", format="Q4_0") is None


# Making.


def test_what_is_made_is_described(store: Store) -> None:
    about = {"format": "Q8_0", "method": Method.GGUF, "model": "tiny", "tool": "t", "group_size": 128}
    stored = store.make(KEY, about, writes(), name="tiny-Q8_0.gguf")
    assert stored.path == stored.directory / "tiny-Q8_0.gguf"
    assert stored.path.read_bytes() == BYTES
    assert stored.digest == DIGEST
    manifest = store.manifest(stored.id)
    assert manifest and (manifest.kind, manifest.format, manifest.tool) == (Origin.PRODUCED, "Q8_0", "t")
    assert manifest.header == {"group_size": 128}
    assert places(store) == {"blobs", "artifacts"}


def test_what_is_there_is_not_made_again(store: Store) -> None:
    made = store.make(KEY, {}, writes())
    assert store.make(KEY, {}, never) == made
    forget()
    assert Store(store.root).make(KEY, {}, never) == made


def test_a_directory_can_be_made(store: Store) -> None:
    def write(target: Path) -> None:
        (target / "sub").mkdir(parents=True)
        (target / "config.json").write_bytes(b"{}")
        (target / "sub" / "model.safetensors").write_bytes(BYTES)

    stored = store.make(KEY, {"method": Method.GPTQ}, write, name="tiny-GPTQ")
    assert stored.path == stored.directory
    assert sorted(file.name for file in stored.manifest.files) == ["config.json", "sub/model.safetensors"]
    assert (stored.path / "sub" / "model.safetensors").read_bytes() == BYTES
    assert store.make(KEY, {}, never, name="tiny-GPTQ") == stored


@pytest.mark.parametrize("kind", ["nothing", "empty directory", "link", "pipe", "link to a directory"])
def test_only_files_are_made(store: Store, tmp_path: Path, kind: str) -> None:
    def write(target: Path) -> None:
        if kind == "empty directory":
            target.mkdir()
        elif kind == "link":
            target.mkdir()
            (target / "passwd").symlink_to("/etc/passwd")
        elif kind == "link to a directory":
            target.symlink_to(tmp_path)
        elif kind == "pipe":
            os.mkfifo(target)

    with pytest.raises(ProductionError):
        store.make(KEY, {}, write)
    assert places(store) == set()
    assert list((store.root / "partial").iterdir()) == []


@pytest.mark.parametrize(
    ("key", "about", "name"),
    [
        ("../x", {}, "a.gguf"), ("", {}, "a.gguf"), ("A", {}, "a.gguf"), ("a" * 200, {}, "a.gguf"),
        ("a", {"format": 5}, "a.gguf"), ("a", {"model": "\ud800"}, "a.gguf"), ("a", {"x": object()}, "a.gguf"),
        ("a", {"x": float("nan")}, "a.gguf"), ("a", {"bits": -1}, "a.gguf"), ("a", {"method": "magic"}, "a.gguf"),
        ("a", {}, "../a"), ("a", {}, "/a"), ("a", {}, ""), ("a", {}, "a\0"), ("a", {}, "con.gguf"),
    ],
)  # fmt: skip
def test_what_cannot_be_described_is_refused_before_the_work(
    store: Store, key: str, about: dict[str, object], name: str
) -> None:
    with pytest.raises((InvalidInputError, UnsafeSourceError)):
        store.make(key, about, never, name=name)
    assert not store.root.exists()


def test_nobody_sees_half_an_artifact(store: Store) -> None:
    seen: list[object] = []

    def write(target: Path) -> None:
        target.write_bytes(BYTES[:5])
        seen.append(store.list())
        seen.append(places(store))
        target.write_bytes(BYTES)

    store.make(KEY, {}, write)
    assert seen == [(), {"partial"}]


def test_a_blob_that_changed_is_made_anew(store: Store) -> None:
    made = store.make(KEY, {}, writes())
    overwrite(made.path, b"changed")
    again = store.make(KEY, {}, writes())
    assert again.path.read_bytes() == BYTES
    assert again.id == made.id


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ProductionError("no"), ProductionError),
        (KeyError("k"), KeyError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), DiskFullError),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), DiskFullError),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), DiskFullError),
        (OSError(errno.EIO, os.strerror(errno.EIO)), ArtifactError),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), ArtifactError),
    ],
)
def test_a_maker_that_fails_leaves_nothing(store: Store, error: BaseException, expected: type[BaseException]) -> None:
    with pytest.raises(expected) as caught:
        store.make(KEY, {}, fails(error))
    assert type(caught.value) is expected
    if isinstance(error, OSError):
        assert caught.value.__cause__ is error
        assert "QLANGCHAIN_HOME" in str(caught.value)
    assert store.list() == ()
    assert places(store) == set()
    assert store.make(KEY, {}, writes()).path.read_bytes() == BYTES


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full(store: Store) -> None:
    def write(target: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(BYTES)

    with pytest.raises(DiskFullError) as caught:
        store.make(KEY, {}, write)
    assert str(store.root) in caught.value.message
    assert places(store) == set()


@pytest.mark.parametrize("where", ["root", "locks", "partial", "blobs", "artifacts"])
def test_a_store_that_cannot_be_written(store: Store, where: str) -> None:
    # A file where a directory should be stops even root, whom permissions do not.
    path = {"root": store.root}.get(where, store.root / where)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        store.make(KEY, {}, writes())
    assert str(store.root) in caught.value.message
    assert "QLANGCHAIN_HOME" in caught.value.hint


@pytest.mark.parametrize("where", ["digests", "quarantine", "git", "refs"])
def test_notes_that_cannot_be_written_cost_no_artifact(store: Store, where: str) -> None:
    store.root.mkdir()
    (store.root / where).write_text("in the way")
    made = store.make(KEY, {}, writes())
    assert publish(store, BYTES, also=GIT).read_bytes() == BYTES
    assert store.get(made.id) == made
    overwrite(made.path, b"changed")
    assert store.get(made.id) is None
    assert store.make(KEY, {}, writes()).path.read_bytes() == BYTES


# Digests of files elsewhere.


def count_reading(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []

    def counting(path: Path) -> str:
        read.append(path)
        return sha256(path)

    monkeypatch.setattr(blobs_module, "sha256", counting)
    monkeypatch.setattr(store_module, "sha256", counting)
    return read


def test_digests_are_remembered(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(BYTES)
    (tmp_path / "link.gguf").symlink_to(file)
    read = count_reading(monkeypatch)
    for path in (file, file, tmp_path / "link.gguf"):
        assert store.digest(path) == DIGEST
        forget()
    assert Store(store.root).digest(file) == DIGEST
    assert read == [file.resolve()]


@pytest.mark.parametrize("change", ["longer", "same size", "replaced"])
def test_digests_follow_the_file(store: Store, tmp_path: Path, change: str) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(BYTES)
    store.digest(file)
    content = BYTES + b"!" if change == "longer" else BYTES[::-1]
    if change == "replaced":
        (tmp_path / "new").write_bytes(content)
        os.utime(tmp_path / "new", ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        (tmp_path / "new").replace(file)
    else:
        file.write_bytes(content)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))  # even where the clock has not moved on
    for _ in range(2):
        assert store.digest(file) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha256": 1}', '{"sha256": "x", "stamp": [1, 2, 3, 4]}'])
def test_a_note_that_makes_no_sense_is_not_believed(store: Store, tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(BYTES)
    store.digest(file)
    (note,) = (store.root / "digests").iterdir()
    note.write_text(content)
    forget()
    assert store.digest(file) == DIGEST


def test_names_in_any_encoding_have_digests(store: Store, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"a\xff.gguf")
    try:
        file.write_bytes(BYTES)
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    assert store.digest(file) == DIGEST
    forget()
    assert store.digest(file) == DIGEST


def test_a_store_that_cannot_be_written_still_digests(store: Store, tmp_path: Path) -> None:
    store.root.write_text("in the way")
    file = tmp_path / "a.gguf"
    file.write_bytes(BYTES)
    assert store.digest(file) == DIGEST


def test_what_cannot_be_read_has_no_digest(store: Store, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(CorruptFileError, match="cannot be read") as caught:
            store.digest(path)
        assert str(path) in caught.value.message


# Threads.


def together(count: int, work: Callable[[int], object]) -> list[object]:
    """Do the same in several threads at the same moment; returns what they returned or raised."""
    barrier, got = threading.Barrier(count), []

    def run(number: int) -> None:
        barrier.wait(WAIT)
        try:
            got.append(work(number))
        except BaseException as error:
            got.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    return got


def test_threads_that_want_the_same_make_it_once(store: Store) -> None:
    written = []

    def write(target: Path) -> None:
        written.append(target)
        target.write_bytes(BYTES)

    got = together(8, lambda _: store.make(KEY, {}, write))
    assert len(written) == 1
    assert got == [store.list()[0]] * 8


def test_threads_that_publish_the_same_blob(store: Store, tmp_path: Path) -> None:
    def work(number: int) -> Path:
        partial = tmp_path / str(number)
        partial.write_bytes(BYTES)
        return store.publish_blob(partial, DIGEST)

    assert together(8, work) == [store.path_of(DIGEST)] * 8
    assert store.blob(DIGEST, afresh=True)


def test_threads_that_write_the_same_note_never_show_half_of_it(tmp_path: Path) -> None:
    note = tmp_path / "note.json"

    def work(number: int) -> bool:
        whole = True
        for _ in range(10):
            write_json(note, {"number": number, "long": "x" * 50_000 * number})
            whole = whole and bool(read_json(note))
        return whole

    assert together(6, work) == [True] * 6
    assert list(tmp_path.iterdir()) == [note]


def test_a_note_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "note.json", {"not JSON": object()})
    assert list(tmp_path.iterdir()) == []
