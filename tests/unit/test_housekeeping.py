"""Verifying, removing and collecting: everything that should go goes, nothing else, and a dry run changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from unit.storing import add, forget, git, manifest_of, overwrite, publish, sha

from qlangchain.artifacts.housekeeping import matching
from qlangchain.artifacts.locks import hold, sweep
from qlangchain.artifacts.store import Store
from qlangchain.errors import InvalidInputError, ModelNotFoundError

OLD = 10 * 86400  # seconds


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def _age_by_mtime(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody can set when an inode was changed, so the tests age files by when they were written.
    monkeypatch.setattr("qlangchain.artifacts.housekeeping._age", lambda path: path.lstat().st_mtime)


def age(path: Path, seconds: float = OLD) -> None:
    now = path.lstat().st_mtime
    os.utime(path, (now - seconds, now - seconds), follow_symlinks=False)


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.parent.name != "locks"
    }


# Verifying.


def test_verifying_tells_what_has_changed_and_what_is_missing(store: Store) -> None:
    stored = add(store, {"a.gguf": b"a", "b.gguf": b"b", "c.gguf": b"c"})
    publish(store, b"of none")
    assert {check.state for check in store.verify()} == {"ok"}
    overwrite(store.path_of(sha(b"a")), b"!")
    store.path_of(sha(b"b")).unlink()
    states = {check.name: check.state for check in store.verify()}
    assert states == {"a.gguf": "changed", "b.gguf": "missing", "c.gguf": "ok", sha(b"of none"): "ok"}
    assert not store.path_of(sha(b"a")).exists()
    assert [check.state for check in store.verify([stored.id])] == ["missing", "missing", "ok"]
    with pytest.raises(ModelNotFoundError):
        store.verify(["a" * 64])


# Removing.


def test_removing_frees_what_nothing_else_needs(store: Store) -> None:
    one = add(store, {"a.gguf": b"shared", "b.gguf": b"only one"}, revision="main", format="Q4_0")
    two = add(store, {"a.gguf": b"shared"}, repo="org/two")
    before = snapshot(store.root)
    planned = store.remove([one.id], dry_run=True)
    assert snapshot(store.root) == before
    assert store.remove([one.id]) == planned
    assert sum(entry.size_bytes for entry in planned) == len(b"only one")
    assert store.list() == (two,)
    assert store.get(two.id) == two
    assert not one.directory.exists()
    assert store.resolve("org/name", revision="main", format="Q4_0") is None
    assert {path.name for path in (store.root / "blobs").iterdir()} == {sha(b"shared")}
    with pytest.raises(ModelNotFoundError):
        store.remove([one.id])


def test_removing_checks_all_names_before_it_begins(store: Store) -> None:
    one = add(store, {"a.gguf": b"a"})
    with pytest.raises(ModelNotFoundError):
        store.remove([one.id, "a" * 64])
    assert store.get(one.id) == one


def test_what_is_open_stays_readable(store: Store) -> None:
    one = add(store, {"a.gguf": b"GGUF"})
    with one.path.open("rb") as file:
        store.remove([one.id])
        assert file.read() == b"GGUF"


def test_two_that_share_a_file_can_go_together(store: Store) -> None:
    ids = [add(store, {"a.gguf": b"shared"}, repo=repo).id for repo in ("org/one", "org/two")]
    swept = store.remove(ids)
    assert [entry.kind for entry in swept] == ["artifact", "artifact", "blob"]
    assert not list((store.root / "blobs").iterdir())


# Collecting.


def test_an_orderly_store_has_nothing_to_collect(store: Store) -> None:
    add(store, {"a.gguf": b"a", "sub/b.json": b"b"}, revision="main", format="Q4_0")
    publish(store, b"small", also=git(b"small"))
    store.digest(store.path_of(sha(b"a")))
    before = snapshot(store.root)
    assert [entry for entry in store.gc() if entry.kind != "lock"] == []
    assert snapshot(store.root) == before


def littered(store: Store, tmp_path: Path) -> dict[str, Path]:
    """One thing of each kind that should go, by what it is."""
    gone = tmp_path / "gone.gguf"
    gone.write_bytes(b"gone")
    store.digest(gone)
    gone.unlink()
    (note,) = (path for path in (store.root / "digests").iterdir() if str(gone) in path.read_text())
    litter = {
        "partial": store.partial("a" * 64),
        "partial of git": store.partial("b" * 40),
        "its journal": store.partial("a" * 64).with_name("a" * 64 + ".journal"),
        "hidden": store.root / "partial" / ".x",
        "blob": publish(store, b"of none"),
        "blob of an older layout": store.root / "blobs" / ("c" * 64 + ".gguf"),
        "quarantined": store.root / "quarantine" / "x.1",
        "half a note": store.root / "digests" / ".x.json.1-2.tmp",
        "half a manifest": store.root / "artifacts" / ".x.json.1-2.tmp",
        "git": store.root / "git" / f"{'d' * 40}.json",
        "ref": store.root / "refs" / "x.json",
        "hostile note": store.root / "digests" / "y.json",
    }
    for name, path in litter.items():
        path.parent.mkdir(exist_ok=True)
        if name != "blob":
            path.write_bytes(b'{"sha256": 5, "id": "..", "path": "\\u0000"}')
        age(path)
    names = store.root / "artifacts" / ("e" * 64)
    names.mkdir()
    (names / "a.gguf").write_bytes(b"12345")
    made = store.root / "partial" / f"make-{'f' * 64}"
    made.mkdir()
    (made / "x").write_bytes(b"123")
    age(names)
    age(made)
    (about_blob,) = (path for path in (store.root / "digests").iterdir() if sha(b"of none") in path.read_text())
    return {**litter, "names": names, "making": made, "note": note, "note of the blob": about_blob}


def test_everything_that_nothing_refers_to_is_collected(store: Store, tmp_path: Path) -> None:
    kept = add(store, {"a.gguf": b"a"}, revision="main", format="Q4_0")
    publish(store, b"small", also=git(b"small"))
    needed = snapshot(store.root)
    litter = littered(store, tmp_path)
    before = snapshot(store.root)
    planned = store.gc(dry_run=True)
    assert snapshot(store.root) == before
    assert {entry.path for entry in planned if entry.kind != "lock"} == set(litter.values())
    swept = store.gc()
    assert {(e.path, e.size_bytes) for e in swept if e.kind != "lock"} == {
        (e.path, e.size_bytes) for e in planned if e.kind != "lock"
    }
    sizes = {entry.path: entry.size_bytes for entry in swept}
    assert (sizes[litter["names"]], sizes[litter["making"]], sizes[litter["blob"]]) == (5, 3, 7)
    for name, path in litter.items():
        assert not path.exists(), name
    left = snapshot(store.root)
    assert {name: left.get(name) for name in needed} == needed
    assert store.get(kept.id) == kept


def test_what_is_young_stays(store: Store, tmp_path: Path) -> None:
    litter = littered(store, tmp_path)
    for name in ("partial", "blob", "quarantined", "half a note", "half a manifest", "names", "making"):
        age(litter[name], -OLD)
    store.gc()
    for name in (
        "partial",
        "blob",
        "note of the blob",
        "quarantined",
        "half a note",
        "half a manifest",
        "names",
        "making",
    ):
        assert litter[name].exists(), name
    store.gc(older_than=0)
    assert not any(path.exists() for path in litter.values())


def test_what_is_published_needs_no_partial_however_young(store: Store) -> None:
    publish(store, b"a", also=git(b"a"))
    for digest in (sha(b"a"), git(b"a")):
        store.partial(digest).write_bytes(b"")
    assert len([entry for entry in store.gc() if entry.kind == "partial"]) == 2


def test_what_somebody_works_on_stays(store: Store, tmp_path: Path) -> None:
    litter = littered(store, tmp_path)
    names = {"partial": "a" * 64, "making": f"make-{'f' * 64}", "blob": sha(b"of none")}
    with (
        store.lock(names["partial"], what="fetching", timeout=0),
        store.lock(names["making"], what="making", timeout=0),
        store.lock(names["blob"], what="fetching", timeout=0),
    ):
        store.gc(older_than=0)
        assert litter["its journal"].exists()
        assert all(litter[name].exists() for name in names)
        assert not litter["partial of git"].exists()
        assert {path.stem for path in (store.root / "locks").glob("*.lock")} == set(names.values())
    store.gc(older_than=0)
    assert not any(litter[name].exists() for name in names)


def test_a_damaged_manifest_costs_only_its_own_artifact(store: Store) -> None:
    one = add(store, {"a.gguf": b"a"})
    two = add(store, {"b.gguf": b"b"}, repo="org/two")
    (store.root / "artifacts" / f"{one.id}.json").write_text("{")
    assert store.list() == (two,)
    assert store.blob(one.digest)
    store.gc(older_than=0)
    assert store.blob(one.digest) is None
    assert store.get(two.id) == two


def test_an_old_store_that_is_not_there(store: Store) -> None:
    assert [entry for entry in store.gc(dry_run=True) if entry.kind != "lock"] == []
    assert store.verify() == ()


def test_a_lock_that_was_swept_still_excludes(store: Store, tmp_path: Path) -> None:
    # Who waits on the file that is removed must come to hold the one that is made anew.
    for _ in range(3):
        with store.lock("x", what="work", timeout=0):
            assert sweep(store.root / "locks", dry_run=False) == []
        assert [path.name for path in sweep(store.root / "locks", dry_run=False)] == ["x.lock"]
        assert not list((store.root / "locks").iterdir())


# Naming.


def test_artifacts_are_named_in_several_ways(store: Store) -> None:
    one = add(store, {"a.gguf": b"a"}, format="Q4_0").manifest
    two = add(store, {"a.gguf": b"b"}, format="Q8_0").manifest
    made = store.make("ab", {"model": "tiny", "format": "Q8_0"}, lambda target: target.write_bytes(b"c")).manifest
    assert matching(store, [one.id]) == matching(store, [one.id[:8]]) == matching(store, ["org/name:q4_0"]) == [one]
    assert {manifest.id for manifest in matching(store, ["org/name", one.id])} == {one.id, two.id}
    assert matching(store, ["tiny"]) == matching(store, ["tiny:Q8_0"]) == [made]
    for name in ("", "org", "org/name:Q2_K", one.id[:5], "../x", "f" * 64, "*"):
        with pytest.raises(ModelNotFoundError):
            matching(store, [name])


def test_a_beginning_that_fits_several_is_refused(store: Store) -> None:
    wanted: dict[str, str] = {}
    number = 0
    while True:  # two ids with the same first six digits, found by trying
        manifest = manifest_of({"a.gguf": b"a"}, commit=hashlib.sha1(b"%d" % number).hexdigest())
        if manifest.id[:6] in wanted:
            break
        wanted[manifest.id[:6]] = manifest.commit or ""
        number += 1
    publish(store, b"a")
    for commit in (wanted[manifest.id[:6]], manifest.commit):
        store.add(manifest_of({"a.gguf": b"a"}, commit=commit))
    forget()
    with pytest.raises(InvalidInputError, match="2 ids"):
        matching(store, [manifest.id[:6]])


def test_who_waits_for_a_lock_gets_it_though_its_directory_was_removed(tmp_path: Path) -> None:
    room, entered = tmp_path / "room", threading.Event()

    def wait() -> None:
        with hold(room, "work", what="waiting", timeout=30):
            entered.set()

    waiting = threading.Thread(target=wait)
    with hold(room, "work", what="making", timeout=1):
        waiting.start()
        time.sleep(0.3)
        assert not entered.is_set()
        shutil.rmtree(room)
    waiting.join()
    assert entered.is_set()
