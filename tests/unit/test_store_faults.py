"""The store under kills, full disks, many processes, a stopped lock holder, and without the right to write."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.storing import manifest_of

from qlangchain.artifacts.store import Store
from qlangchain.errors import StoreLockedError

POINTS = Path(__file__).with_name("crash_points.py")
WAIT = 60.0  # seconds; only a failing test waits so long
KEY = "0123abcd"
SIZE = 3_000_000  # bytes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def stop_everywhere(root: Path, how: str, step: int) -> int:
    root.mkdir(exist_ok=True)
    command = [sys.executable, str(POINTS), str(root), how, str(step)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return sum(int(line.split()[1]) for line in done.stdout.splitlines())


@pytest.mark.parametrize("how", ["kill", "full", "size"])
def test_stopped_at_many_points_nothing_is_half_there(tmp_path: Path, how: str) -> None:
    step = random.choice((5, 7)) if how != "size" else 5
    assert stop_everywhere(tmp_path / "points", how, step) > 40


@pytest.mark.soak
@pytest.mark.parametrize("how", ["kill", "full", "size"])
def test_stopped_at_every_point_nothing_is_half_there(tmp_path: Path, how: str) -> None:
    assert stop_everywhere(tmp_path / "points", how, 1) >= 250


# Real processes. What they make is a function of the key, so that every process knows what it must be.

WORKER = """
import hashlib, os, random, sys, time
from pathlib import Path
from qlangchain.artifacts.store import Store
from qlangchain.errors import QlangchainError

root, how, key, size = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
store = Store(root)

def write(target):
    with (root.parent / "written").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    if how == "hang":
        print("writing", flush=True)
        time.sleep(600)
    with target.open("wb") as file:
        for _ in range(size // 100_000):
            file.write(hashlib.sha256(key.encode()).digest() * 3125)
            time.sleep(0.002)

print("ready", flush=True)
sys.stdin.readline()
if how == "churn":
    end = time.monotonic() + 3
    failed = 0
    while time.monotonic() < end:
        try:
            made = store.make(key, {}, write)
            random.choice([lambda: store.remove([made.id]), store.gc, store.verify, lambda: store.find("org/name")])()
        except QlangchainError:
            failed += 1
    print(failed, flush=True)
else:
    print(store.make(key, {}, write).digest, flush=True)
"""


def content(key: str, size: int = SIZE) -> bytes:
    return hashlib.sha256(key.encode()).digest() * (3125 * (size // 100_000))


def worker(store: Store, how: str = "make", key: str = KEY, size: int = SIZE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(store.root), how, key, str(size)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def release(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()


def test_eight_processes_that_want_the_same_make_it_once(store: Store, tmp_path: Path) -> None:
    processes = [worker(store) for _ in range(8)]
    release(processes)
    said = [process.communicate(timeout=WAIT)[0].split() for process in processes]
    assert said == [[hashlib.sha256(content(KEY)).hexdigest()]] * 8
    assert len((tmp_path / "written").read_text().split()) == 1
    assert len(store.list()) == len(list((store.root / "blobs").iterdir())) == 1


def test_processes_that_make_remove_verify_and_collect_at_once(store: Store) -> None:
    processes = [worker(store, "churn", key, 100_000) for key in ("a", "b", "a", "b")]
    release(processes)
    for process in processes:
        said, _ = process.communicate(timeout=WAIT)
        assert process.returncode == 0, said
    for key in ("a", "b"):
        made = store.make(key, {}, lambda target, key=key: target.write_bytes(content(key, 100_000)))
        assert made.path.read_bytes() == content(key, 100_000)
    assert all(check.state == "ok" for check in store.verify())


def kill_at_random(store: Store, times: int) -> None:
    random_delays = random.Random(times)
    for number in range(times):
        process = worker(store, key=f"k{number}")
        release([process])
        time.sleep(random_delays.uniform(0, 0.12))
        process.kill()
        process.communicate()
        whole = content(f"k{number}")
        for stored in store.list():
            assert store.get(stored.id) == stored
        made = store.make(f"k{number}", {}, lambda target, whole=whole: target.write_bytes(whole))
        assert made.path.read_bytes() == whole
        store.remove([made.id])
    store.gc(older_than=0)
    left = [path for path in store.root.rglob("*") if path.is_file() and path.parent.name != "locks"]
    assert left == []


def test_kills_at_random_moments_leave_nothing_in_the_way(store: Store) -> None:
    kill_at_random(store, 6)


@pytest.mark.soak
def test_a_hundred_kills_at_random_moments(store: Store) -> None:
    kill_at_random(store, 100)


@pytest.mark.parametrize("state", ["working", "stopped"])
def test_who_waits_too_long_is_told_for_whom(store: Store, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    monkeypatch.setattr("qlangchain.artifacts.store._MAKING_SECONDS", 0.1)
    with worker(store, "hang") as process:
        release([process])
        assert process.stdout and process.stdout.readline() == "writing\n"
        if state == "stopped":
            process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreLockedError, match=f"Process {process.pid} has been making model.gguf"):
                store.make(KEY, {}, lambda target: target.write_bytes(b""))
            held = store.gc(older_than=0)
            assert not [entry for entry in held if entry.kind == "partial"]
        finally:
            process.kill()
            process.wait(WAIT)
    assert [entry.kind for entry in store.gc(older_than=0) if entry.kind == "partial"] == ["partial"]


# Without the right to write.


@pytest.fixture
def readable() -> Iterator[Path]:
    """A directory that every user may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="qlangchain-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


READER = """
import os, sys
from pathlib import Path
import qlangchain.artifacts.housekeeping
from qlangchain.artifacts.store import Store
from qlangchain.errors import ArtifactError

root = Path(sys.argv[1])
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
store = Store(root / "store")
(listed,) = store.list()
assert store.get(listed.id) == listed
assert store.find("org/name", format="Q4_0") == [listed]
assert store.resolve("org/name", revision="main", format="Q4_0") == listed
assert listed.path.read_bytes() == b"GGUF and the rest"
assert store.blob(listed.digest)
assert [check.state for check in store.verify()] == ["ok"]
for change in (lambda: store.remove([listed.id]), store.gc, lambda: store.make("ab", {}, lambda target: None)):
    try:
        change()
    except ArtifactError as error:
        print(error.hint)
    else:
        raise AssertionError("it was changed")
"""


@pytest.mark.parametrize("state", ["as it was", "copied with its links", "copied without", "notes lost", "locks lost"])
def test_a_store_that_may_only_be_read_gives_what_it_has(readable: Path, state: str) -> None:
    store = Store(readable / "store")
    digest = hashlib.sha256(b"GGUF and the rest").hexdigest()
    store.partial(digest).write_bytes(b"GGUF and the rest")
    store.publish_blob(store.partial(digest), digest)
    stored = store.add(manifest_of({"a.gguf": b"GGUF and the rest"}, revision="main", format="Q4_0"))
    if state.startswith("copied"):
        store.root.rename(readable / "old")
        option = "-a" if state == "copied with its links" else "-r"
        subprocess.run(["cp", option, str(readable / "old"), str(store.root)], check=True)
    elif state == "notes lost":
        shutil.rmtree(store.root / "digests")
    elif state == "locks lost":
        shutil.rmtree(store.root / "locks")
    for directory, _, _ in os.walk(store.root):
        Path(directory).chmod(0o555)
    try:
        command = [sys.executable, "-c", READER, str(readable)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("QLANGCHAIN_HOME") == 3
        assert stored.path.read_bytes() == b"GGUF and the rest"
    finally:
        for directory, _, _ in os.walk(store.root):
            Path(directory).chmod(0o755)
