"""Bundles: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import io
import json
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.storing import add, manifest_of, overwrite, sha

from qlangchain.artifacts import bundle as bundle_module
from qlangchain.artifacts.bundle import export_bundle, import_bundle
from qlangchain.artifacts.store import Store
from qlangchain.errors import (
    ArtifactError,
    ChecksumError,
    CorruptFileError,
    DiskFullError,
    InvalidInputError,
    ModelNotFoundError,
    UnsafeSourceError,
)

FILES = {"model.gguf": b"GGUF and the rest" * 100, "sub/config.json": b"{}"}
Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


@pytest.fixture
def bundle(store: Store, tmp_path: Path) -> Path:
    one = add(store, FILES, format="Q4_0", revision="main")
    two = add(store, {"other.gguf": FILES["model.gguf"]}, repo="org/two")
    export_bundle(store, [one.id, two.id, one.id], tmp_path / "models.tar")
    return tmp_path / "models.tar"


def test_what_goes_in_comes_out(bundle: Path, store: Store, other: Store) -> None:
    done: list[tuple[int, int]] = []
    imported = import_bundle(other, bundle, progress=lambda now, total: done.append((now, total)))
    assert [entry.manifest for entry in imported] == [entry.manifest for entry in store.list()][::-1] or {
        entry.id for entry in imported
    } == {entry.id for entry in store.list()}
    (one,) = other.find("org/name")
    assert {name: (one.directory / name).read_bytes() for name in FILES} == FILES
    assert other.resolve("org/name", revision="main", format="Q4_0") == one
    assert all(check.state == "ok" for check in other.verify())
    assert done[-1] == (1702, 1702)


def test_a_bundle_is_a_plain_archive_and_the_same_each_time(bundle: Path, store: Store, tmp_path: Path) -> None:
    with tarfile.open(bundle, "r:") as tar:
        members = tar.getmembers()
    ids = sorted(entry.id for entry in store.list())
    names = ["qlangchain-bundle.json", *(f"artifacts/{id}.json" for id in ids)]
    assert sorted(member.name for member in members if not member.name.startswith("blobs/")) == sorted(names)
    assert {member.name for member in members if member.name.startswith("blobs/")} == {
        f"blobs/{sha(content)}" for content in FILES.values()
    }
    assert all(member.isreg() and not member.mtime and not member.uid for member in members)
    order = [member.name.removeprefix("artifacts/").removesuffix(".json") for member in members[1:3]]
    export_bundle(store, order, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == bundle.read_bytes()


def test_what_is_there_is_not_written_again(bundle: Path, other: Store) -> None:
    imported = import_bundle(other, bundle)
    before = {path: path.stat().st_mtime_ns for path in other.root.rglob("*") if path.is_file()}
    assert import_bundle(other, bundle) == imported
    after = {path: path.stat().st_mtime_ns for path in other.root.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= set((other.root / "locks").iterdir())


def test_what_was_asked_for_before_keeps_leading_where_it_led(bundle: Path, other: Store) -> None:
    mine = add(other, {"model.gguf": b"mine"}, format="Q4_0", revision="main", commit="d" * 40)
    import_bundle(other, bundle)
    assert other.resolve("org/name", revision="main", format="Q4_0") == mine
    assert len(other.find("org/name")) == 2


def test_large_files_pass_through_little_memory(store: Store, other: Store, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(40_000_000)
    stored = add(store, {"model.gguf": content})
    export_bundle(store, [stored.id], tmp_path / "a.tar")
    tracemalloc.start()
    try:
        import_bundle(other, tmp_path / "a.tar")
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()
    assert other.list()[0].path.read_bytes() == content


# Exporting what cannot be.


def test_only_whole_artifacts_are_exported(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    with pytest.raises(ModelNotFoundError):
        export_bundle(store, ["a" * 64], target)
    with pytest.raises(InvalidInputError):
        export_bundle(store, [], target)
    stored = add(store, FILES)
    path = store.path_of(sha(FILES["model.gguf"]))
    stat = path.stat()
    overwrite(path, FILES["model.gguf"][::-1])
    path.chmod(0o444)
    import os

    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # so that only reading shows it
    with pytest.raises(ChecksumError, match="has changed"):
        export_bundle(store, [stored.id], target)
    assert store.get(stored.id) is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["store"]


def test_a_file_that_is_there_is_not_written_over(store: Store, bundle: Path) -> None:
    before = bundle.read_bytes()
    with pytest.raises(InvalidInputError, match="is there already"):
        export_bundle(store, [store.list()[0].id], bundle)
    assert bundle.read_bytes() == before
    export_bundle(store, [store.list()[0].id], bundle, overwrite=True)
    assert bundle.read_bytes() != before


def test_a_directory_that_is_not_there(store: Store, tmp_path: Path) -> None:
    stored = add(store, FILES)
    with pytest.raises(ArtifactError, match="cannot be written"):
        export_bundle(store, [stored.id], tmp_path / "no" / "a.tar")


# Importing what should not be.


def members_of(bundle: Path) -> list[Member]:
    with tarfile.open(bundle, "r:") as tar:
        found = []
        for member in tar:
            file = tar.extractfile(member)
            assert file
            found.append((member, file.read()))
        return found


def rewrite(bundle: Path, change: Callable[[list[Member]], object]) -> None:
    members = members_of(bundle)
    change(members)
    with tarfile.open(bundle, "w:", format=tarfile.GNU_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)


def named(name: str, content: bytes = b"x", **fields: object) -> Member:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, content


def special(type: bytes) -> Callable[[list[Member]], object]:
    def change(members: list[Member]) -> None:
        members[-1] = named(members[-1][0].name, b"", type=type, linkname="/etc/passwd")

    return change


def renamed(name: str) -> Callable[[list[Member]], object]:
    return lambda members: setattr(members[-1][0], "name", name)


def edited(change: Callable[[dict[str, object]], object], at: int = 1) -> Callable[[list[Member]], object]:
    def edit(members: list[Member]) -> None:
        content = json.loads(members[at][1])
        change(content)
        members[at] = named(members[at][0].name, json.dumps(content).encode())

    return edit


def hostile_file(**fields: object) -> Callable[[list[Member]], object]:
    return edited(lambda content: content["files"][0].update(fields))


def shorter(members: list[Member]) -> None:
    members[-1] = named(members[-1][0].name, members[-1][1][:-1])


def other_bytes(members: list[Member]) -> None:
    members[-1] = named(members[-1][0].name, members[-1][1][::-1][:-1] + b"!")


HOSTILE: dict[str, Callable[[list[Member]], object]] = {
    "symbolic link": special(tarfile.SYMTYPE),
    "hard link": special(tarfile.LNKTYPE),
    "device": special(tarfile.CHRTYPE),
    "block device": special(tarfile.BLKTYPE),
    "pipe": special(tarfile.FIFOTYPE),
    "directory": special(tarfile.DIRTYPE),
    "sparse": special(tarfile.GNUTYPE_SPARSE),
    "absolute": renamed("/etc/passwd"),
    "above": renamed("blobs/../../x"),
    "above with the digest": renamed("blobs/../blobs/" + "a" * 64),
    "backslash": renamed("blobs\\" + "a" * 64),
    "not announced": renamed("blobs/" + "a" * 64),
    "foreign name": renamed("setup.py"),
    "long name": renamed("blobs/" + "a" * 200),
    "no name": renamed(""),
    "twice": lambda members: members.append(members[-1]),
    "something more": lambda members: members.append(named("blobs/" + "b" * 64)),
    "a manifest more": lambda members: members.insert(3, named("artifacts/" + "b" * 64 + ".json")),
    "missing blob": lambda members: members.pop(),
    "missing manifest": lambda members: members.pop(1),
    "missing index": lambda members: members.pop(0),
    "empty": lambda members: members.clear(),
    "shorter": shorter,
    "other bytes": other_bytes,
    "size that lies": hostile_file(size=5),
    "huge size": hostile_file(size=1 << 62),
    "negative size": hostile_file(size=-1),
    "hostile file name": hostile_file(name="../../x"),
    "hostile digest": hostile_file(sha256="../../x"),
    "other id": edited(lambda content: content.update(id="a" * 64)),
    "other repository": edited(lambda content: content.update(repo="org/other")),
    "no id": edited(lambda content: content.pop("id")),
    "version": edited(lambda content: content.update(version=9), at=0),
    "too many": edited(lambda content: content.update(artifacts=1 << 40), at=0),
    "negative": edited(lambda content: content.update(artifacts=-1), at=0),
    "none": edited(lambda content: content.update(artifacts=0), at=0),
    "true": edited(lambda content: content.update(artifacts=True), at=0),
    "more than there": edited(lambda content: content.update(artifacts=3), at=0),
    "manifests that contradict": edited(lambda content: content["files"][0].update(size=5), at=2),
    "nested": lambda members: members.__setitem__(1, named(members[1][0].name, b"[" * 100_000)),
    "large manifest": lambda members: members.__setitem__(1, named(members[1][0].name, b" " * 9_000_000)),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_bundle_enters_nothing(
    bundle: Path, other: Store, tmp_path: Path, change: Callable[[list[Member]], object]
) -> None:
    rewrite(bundle, change)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((CorruptFileError, UnsafeSourceError)):
        import_bundle(other, bundle)
    assert other.list() == ()
    assert set(tmp_path.iterdir()) - set(before) <= {other.root}
    for path in (other.root / "blobs").glob("*"):
        assert sha(path.read_bytes()) == path.name
    assert not list((other.root / "partial").glob("*"))


def test_an_index_that_announces_a_petabyte_takes_no_memory(bundle: Path, other: Store) -> None:
    rewrite(bundle, lambda members: None)
    raw = bytearray(bundle.read_bytes())
    raw[124:136] = b"\x80" + (1 << 50).to_bytes(11, "big")  # the size of the first member, in base 256
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    bundle.write_bytes(raw)
    with pytest.raises((CorruptFileError, UnsafeSourceError)):
        import_bundle(other, bundle)


def test_a_truncated_bundle_enters_nothing_and_the_whole_one_goes_on(bundle: Path, other: Store) -> None:
    whole = bundle.read_bytes()
    for size in (0, 1, 511, 512, 600, 1024, 2000, 4000, len(whole) // 2, len(whole) - 9000):
        bundle.write_bytes(whole[:size])
        with pytest.raises(CorruptFileError):
            import_bundle(other, bundle)
        assert other.list() == ()
    bundle.write_bytes(whole)
    assert len(import_bundle(other, bundle)) == 2


@pytest.mark.parametrize("seed", range(8))
def test_mutations_of_a_bundle_never_enter_a_wrong_byte(bundle: Path, tmp_path: Path, seed: int) -> None:
    chance, whole = random.Random(seed), bundle.read_bytes()
    for number in range(25):
        raw = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(raw))
            if chance.random() < 0.7:
                raw[at] ^= 1 << chance.randrange(8)
            else:
                del raw[at : at + chance.choice((1, 511, 512))]
        bundle.write_bytes(raw)
        store = Store(tmp_path / f"{seed}-{number}")
        try:
            import_bundle(store, bundle)
        except ArtifactError:
            assert store.list() == ()
        for stored in store.list():
            assert all(sha((stored.directory / f.name).read_bytes()) == f.sha256 for f in stored.manifest.files)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"\x1f\x8b" + b"\0" * 600, b"PK\x03\x04" * 200, b"\0" * 512])
def test_what_is_no_bundle(tmp_path: Path, other: Store, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(CorruptFileError):
        import_bundle(other, tmp_path / "a.tar")
    assert not other.root.exists()


def test_a_bundle_that_is_not_there(tmp_path: Path, other: Store) -> None:
    for path in (tmp_path / "missing.tar", tmp_path):
        with pytest.raises(ModelNotFoundError, match="cannot be opened"):
            import_bundle(other, path)


def test_room_is_asked_for_before_the_first_byte(bundle: Path, other: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "_SPARE", 1 << 60)
    with pytest.raises(DiskFullError, match="1702 bytes"):
        import_bundle(other, bundle)
    assert not other.root.exists()


def test_an_import_mends_what_was_damaged(bundle: Path, other: Store) -> None:
    imported = import_bundle(other, bundle)
    overwrite(imported[0].path if imported[0].path.is_file() else imported[0].path / "model.gguf", b"damaged")
    assert import_bundle(other, bundle) == imported
    assert all(check.state == "ok" for check in other.verify())


def test_manifests_of_the_same_bytes_under_other_names(store: Store, other: Store, tmp_path: Path) -> None:
    stored = [add(store, {f"{name}.gguf": b"same"}, repo=f"org/{name}") for name in "abc"]
    export_bundle(store, [entry.id for entry in stored], tmp_path / "a.tar")
    assert len(import_bundle(other, tmp_path / "a.tar")) == 3
    assert len(list((other.root / "blobs").iterdir())) == 1
    assert manifest_of({"a.gguf": b"same"}, repo="org/a").id in {entry.id for entry in other.list()}
