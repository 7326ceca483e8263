"""The store: whole or not at all, once, and in any number of threads and processes."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlangchain.artifacts import store as store_module
from qlangchain.artifacts.store import Store, sha256
from qlangchain.errors import ArtifactError, CorruptFileError, DiskFullError, ProductionError

KEY = "0123abcd"
BYTES = b"GGUF and the rest"
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


def files(store: Store) -> set[str]:
    """The files of the store by their directories, without the locks."""
    found = (path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file())
    return {path.parts[0] for path in found} - {"locks"}


# Publishing.


def test_nothing_is_created_before_it_is_needed(store: Store) -> None:
    assert store.find(KEY) is None
    assert not store.root.exists()


def test_an_artifact_is_named_by_its_bytes(store: Store) -> None:
    path, digest = store.make(KEY, {"format": "Q8_0"}, writes())
    assert digest == hashlib.sha256(BYTES).hexdigest()
    assert path == store.root / "blobs" / f"{digest}.gguf"
    assert path.read_bytes() == BYTES
    assert path.stat().st_mode & 0o222 == 0
    assert store.find(KEY) == (path, digest)
    about = json.loads((store.root / "made" / f"{KEY}.json").read_text())
    assert (about["format"], about["sha256"]) == ("Q8_0", digest)
    assert files(store) == {"blobs", "made"}


def test_what_is_there_is_not_made_again(store: Store) -> None:
    made = store.make(KEY, {}, writes())
    assert store.make(KEY, {}, never) == made
    assert Store(store.root).make(KEY, {}, never) == made


def test_two_keys_with_the_same_bytes_share_them(store: Store) -> None:
    assert store.make("a", {}, writes()) == store.make("b", {}, writes())
    assert store.make("a", {}, never) == store.make("b", {}, never)
    assert len(list((store.root / "blobs").iterdir())) == 1


def test_a_manifest_that_cannot_be_read_is_no_manifest(store: Store) -> None:
    store.make(KEY, {}, writes())
    for content in ("", "{", "[1]", '{"sha256": 5}', '{"sha256": "../../etc/passwd"}', "\x00"):
        (store.root / "made" / f"{KEY}.json").write_text(content)
        assert store.find(KEY) is None
    assert store.make(KEY, {}, writes())[0].read_bytes() == BYTES


def test_nobody_sees_half_an_artifact(store: Store) -> None:
    seen: list[object] = []

    def write(target: Path) -> None:
        target.write_bytes(BYTES[:5])
        seen.append(store.find(KEY))
        seen.append(files(store))
        target.write_bytes(BYTES)

    store.make(KEY, {}, write)
    assert seen == [None, {"partial"}]


# Failing.


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
    assert store.find(KEY) is None
    assert files(store) == set()
    assert store.make(KEY, {}, writes())[0].read_bytes() == BYTES


def test_a_maker_that_writes_nothing_is_an_error(store: Store) -> None:
    with pytest.raises(ArtifactError):
        store.make(KEY, {}, lambda target: None)
    assert files(store) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full(store: Store) -> None:
    def write(target: Path) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(BYTES)

    with pytest.raises(DiskFullError) as caught:
        store.make(KEY, {}, write)
    assert str(store.root) in caught.value.message
    assert files(store) == set()


@pytest.mark.parametrize("full", ["holder", "manifest"])
def test_a_disk_that_is_full_for_our_own_notes(store: Store, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    real = store_module._write_json

    def write_json(path: Path, content: Any) -> None:
        if (path.suffix == ".holder") == (full == "holder"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    monkeypatch.setattr(store_module, "_write_json", write_json)
    if full == "holder":  # it only names who is at work
        assert store.make(KEY, {}, writes())[0].read_bytes() == BYTES
    else:
        with pytest.raises(DiskFullError):
            store.make(KEY, {}, writes())
        assert store.find(KEY) is None


def test_a_note_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        store_module._write_json(tmp_path / "note.json", {"not JSON": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["root", "locks", "lock", "partial", "blobs", "made"])
def test_a_store_that_cannot_be_written(store: Store, where: str) -> None:
    # A file where a directory should be stops even root, whom permissions do not.
    path = {"root": store.root, "lock": store.root / "locks" / f"{KEY}.lock"}.get(where, store.root / where)
    path.parent.mkdir(parents=True, exist_ok=True)
    if where == "lock":
        path.mkdir()
    else:
        path.write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        store.make(KEY, {}, writes())
    assert str(store.root) in caught.value.message
    assert "QLANGCHAIN_HOME" in caught.value.hint


def test_a_store_that_cannot_be_written_gives_what_it_has(store: Store) -> None:
    made = store.make(KEY, {}, writes())
    for path in (store.root / "locks").iterdir():
        path.unlink()
    (store.root / "locks").rmdir()
    (store.root / "locks").write_text("in the way")
    assert store.make(KEY, {}, never) == made


# Bytes that change.


def overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("content", [b"GGUF and the rust", b"", BYTES + b"\x00"])
def test_a_blob_that_changed_is_set_aside_and_made_anew(
    store: Store, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path, digest = store.make(KEY, {}, writes())
    overwrite(path, content)
    assert store.find(KEY) is None
    with caplog.at_level(logging.WARNING):
        assert store.make(KEY, {}, writes()) == (path, digest)
    assert path.read_bytes() == BYTES
    assert digest in caplog.text
    (aside,) = (store.root / "quarantine").iterdir()
    assert aside.read_bytes() == content


def test_looking_does_not_move_anything(store: Store) -> None:
    path, _ = store.make(KEY, {}, writes())
    overwrite(path, b"changed")
    assert store.find(KEY) is None
    assert path.read_bytes() == b"changed"


def test_a_blob_that_is_gone_is_made_anew(store: Store) -> None:
    path, digest = store.make(KEY, {}, writes())
    path.unlink()
    assert store.find(KEY) is None
    assert store.make(KEY, {}, writes()) == (path, digest)
    assert not (store.root / "quarantine").exists()


def test_a_store_that_was_copied_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = store.make(KEY, {}, writes())
    os.utime(path, ns=(1, 1))
    read = count_reading(monkeypatch)
    assert store.find(KEY) == (path, digest)
    assert store.find(KEY) == (path, digest)
    assert read == [path]


# Digests of files elsewhere.


def count_reading(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []

    def counting(path: Path) -> str:
        read.append(path)
        return sha256(path)

    monkeypatch.setattr(store_module, "sha256", counting)
    return read


def test_digests_are_remembered(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(BYTES)
    (tmp_path / "link.gguf").symlink_to(file)
    read = count_reading(monkeypatch)
    for path in (file, file, tmp_path / "link.gguf"):
        assert store.digest(path) == hashlib.sha256(BYTES).hexdigest()
    assert Store(store.root).digest(file) == hashlib.sha256(BYTES).hexdigest()
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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha256": 1}', '{"sha256": "x", "stamp": [1, 2, 3]}'])
def test_a_note_that_makes_no_sense_is_not_believed(store: Store, tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(BYTES)
    store.digest(file)
    (note,) = (store.root / "digests").iterdir()
    note.write_text(content)
    assert store.digest(file) == hashlib.sha256(BYTES).hexdigest()


def test_a_store_that_cannot_be_written_still_digests(store: Store, tmp_path: Path) -> None:
    store.root.write_text("in the way")
    file = tmp_path / "a.gguf"
    file.write_bytes(BYTES)
    assert store.digest(file) == hashlib.sha256(BYTES).hexdigest()


def test_what_cannot_be_read_has_no_digest(store: Store, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.gguf", tmp_path):
        with pytest.raises(CorruptFileError, match="cannot be read") as caught:
            store.digest(path)
        assert str(path) in caught.value.message


# Threads and processes.


def test_threads_that_want_the_same_make_it_once(store: Store) -> None:
    together, written, got = threading.Barrier(8), [], []

    def write(target: Path) -> None:
        written.append(target)
        target.write_bytes(BYTES)

    def make() -> None:
        together.wait(WAIT)
        got.append(store.make(KEY, {}, write))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(written) == 1
    assert len(got) == 8
    assert len(set(got)) == 1
    assert files(store) == {"blobs", "made"}


def test_threads_that_digest_the_same_file(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(BYTES)
    together, got = threading.Barrier(8), []

    def digest() -> None:
        for _ in range(5):
            together.wait(WAIT)
            got.append(store.digest(file))
            together.wait(WAIT)
            for note in (store.root / "digests").glob("*.json"):
                note.unlink(missing_ok=True)

    threads = [threading.Thread(target=digest) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert got == [hashlib.sha256(BYTES).hexdigest()] * 40
    assert not list((store.root / "digests").glob("*.tmp"))


def test_threads_that_write_the_same_note_never_show_half_of_it(tmp_path: Path) -> None:
    note, together, wrong = tmp_path / "note.json", threading.Barrier(6), []

    def write(number: int) -> None:
        together.wait(WAIT)
        try:
            for _ in range(10):
                store_module._write_json(note, {"number": number, "long": "x" * 50_000 * number})
                assert store_module._read_json(note)
        except (AssertionError, OSError) as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert wrong == []
    assert list(tmp_path.iterdir()) == [note]


MAKER = """
import os, sys, time
from pathlib import Path
from qlangchain.artifacts.store import Store

root, how = Path(sys.argv[1]), sys.argv[2]

def write(target):
    target.write_bytes(b"GGUF and the ")
    with (root.parent / "written").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    print("writing", flush=True)
    if how == "hang":
        time.sleep(600)
    with target.open("ab") as file:
        file.write(b"rest")

sys.stdin.readline()
print(Store(root).make("0123abcd", {}, write)[1], flush=True)
"""


def maker(store: Store, how: str = "make") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(store.root), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_that_want_the_same_make_it_once(store: Store, tmp_path: Path) -> None:
    processes = [maker(store) for _ in range(3)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=WAIT)[0].split() for process in processes]
    assert {lines[-1] for lines in said} == {hashlib.sha256(BYTES).hexdigest()}
    assert len((tmp_path / "written").read_text().split()) == 1
    assert files(store) == {"blobs", "made"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_in_the_middle_leaves_nothing_and_the_next_try_works(store: Store) -> None:
    with maker(store, "hang") as process:
        assert process.stdin and process.stdout
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT)
    assert store.find(KEY) is None
    assert files(store) == {"partial"}
    assert store.make(KEY, {}, writes())[0].read_bytes() == BYTES
    assert files(store) == {"blobs", "made"}


def test_who_waits_too_long_is_told_for_whom(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_LOCK_SECONDS", 0.05)
    with maker(store, "hang") as process:
        assert process.stdin and process.stdout
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "writing\n"
        try:
            with pytest.raises(ArtifactError, match=f"Process {process.pid} "):
                store.make(KEY, {}, never)
        finally:
            process.kill()
            process.wait(WAIT)
