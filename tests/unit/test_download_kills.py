"""Processes that are killed, stopped or many while they fetch: real ones, with real signals."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub import TOKEN, StandIn, seeded
from unit.fetching import QUICK, check_consistent, check_token_kept, partials, wanted

from qlangchain.artifacts.download import fetch
from qlangchain.artifacts.store import Store
from qlangchain.artifacts.transfer import CHUNK
from qlangchain.errors import StoreLockedError

REPO, NAME = "org/large", "large.gguf"
SIZE = 40_000_000
WAIT = 60.0  # seconds; only a failing test waits so long
CHILD = """
import json, sys
from dataclasses import replace
from pathlib import Path
from qlangchain.artifacts.download import FetchPolicy, Wanted, fetch
from qlangchain.artifacts.listing import RemoteFile
from qlangchain.artifacts.store import Store
asked = json.loads(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
wanted = Wanted(asked["repo"], asked["commit"], RemoteFile(**asked["file"]))
path = fetch([wanted], Store(Path(asked["store"])), endpoint=asked["endpoint"], token=asked["token"],
             policy=FetchPolicy(**asked["policy"]))[wanted.file.name]
print(path, flush=True)
"""


FAST = replace(QUICK, lock=1.0)
Start = Callable[[Store], "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def content() -> bytes:
    return seeded(SIZE, 4)


@pytest.fixture
def hub(content: bytes) -> Iterator[StandIn]:
    with StandIn() as hub:
        hub.add(REPO, {NAME: content})
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home" / "store")


@pytest.fixture
def start(hub: StandIn) -> Iterator[Start]:
    """Start a process that fetches the file into a store as soon as it is told `go`."""
    children: list[subprocess.Popen[str]] = []

    def start(store: Store) -> subprocess.Popen[str]:
        file = wanted(hub.repositories[REPO], NAME)
        names = ("name", "size_bytes", "sha256", "blob_id")
        asked = {
            "repo": REPO,
            "commit": file.commit,
            "file": {name: getattr(file.file, name) for name in names},
            "store": str(store.root),
            "endpoint": hub.url,
            "token": TOKEN,
            "policy": {"margin_bytes": 0},
        }
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def finish(hub: StandIn, store: Store) -> Path:
    return fetch([wanted(hub.repositories[REPO], NAME)], store, endpoint=hub.url, token=TOKEN, policy=QUICK)[NAME]


def left(store: Store) -> int:
    return sum(path.stat().st_size for path in partials(store))


@pytest.mark.parametrize("kills", [pytest.param(6, id="few"), pytest.param(100, id="many", marks=pytest.mark.soak)])
@pytest.mark.timeout(1800)
def test_the_next_try_after_a_kill_goes_on(
    kills: int, hub: StandIn, tmp_path: Path, content: bytes, start: Start
) -> None:
    chance = random.Random(kills)
    # Slow enough that the client keeps up, so that little lies in the system's buffers when it dies.
    hub.rate = 60e6
    twice: list[int] = []
    for number in range(kills):
        store = Store(tmp_path / str(number) / "store")
        child = start(store)
        hub.requests.clear()
        at = chance.randrange(SIZE)
        go(child)
        until(lambda at=at: hub.sent() >= at)
        child.kill()
        child.communicate()
        sent, there = hub.sent(), left(store)
        path = finish(hub, store)
        assert path.read_bytes() == content
        assert partials(store) == []
        check_consistent(store)
        again = hub.seen("GET", "storage")[1:]
        if there and there < SIZE:
            assert again[0].headers["range"] == f"bytes={there}-", "it goes on exactly where the file ends"
            twice.append(sent - there)
        elif there == SIZE or sent == SIZE:
            assert sum(seen.sent for seen in again) in (0, SIZE - there)
        path.chmod(0o644)
        path.unlink()
    # What the process had not read yet counts as sent too: the system's buffers hold some MB where it lags behind.
    assert statistics.median(twice) <= CHUNK, "at most one chunk is fetched twice"
    assert max(twice) <= CHUNK + (8 << 20)
    check_token_kept(hub)


def test_eight_processes_transfer_once(hub: StandIn, store: Store, content: bytes, start: Start) -> None:
    children = [start(store) for _ in range(8)]
    for child in children:
        go(child)
    said = {child.communicate(timeout=WAIT)[0] for child in children}
    assert {child.returncode for child in children} == {0}
    (path,) = said
    assert Path(path.strip()).read_bytes() == content
    assert hub.sent() == SIZE
    assert len(hub.seen("GET", "storage")) == 1


def test_a_stopped_holder_is_named_in_time(hub: StandIn, store: Store, content: bytes, start: Start) -> None:
    hub.rate = 20e6
    holder = start(store)
    go(holder)
    until(lambda: left(store) > 1_000_000)
    os.kill(holder.pid, signal.SIGSTOP)
    file = wanted(hub.repositories[REPO], NAME)
    begun = time.monotonic()
    with pytest.raises(StoreLockedError, match=f"Process {holder.pid} has been fetching {REPO}/{NAME}") as caught:
        fetch([file], store, endpoint=hub.url, policy=FAST)
    assert time.monotonic() - begun < 10
    assert caught.value.is_retryable
    # The deadline of the call counts too, and says what it waited for.
    with pytest.raises(StoreLockedError, match=str(holder.pid)):
        fetch([file], store, endpoint=hub.url, policy=QUICK, deadline=0.5)
    holder.kill()
    holder.wait(WAIT)
    hub.rate = None
    there = left(store)
    assert finish(hub, store).read_bytes() == content
    assert hub.seen("GET", "storage")[-1].headers["range"] == f"bytes={there}-"


def test_a_slow_holder_is_waited_for(hub: StandIn, store: Store, content: bytes, start: Start) -> None:
    hub.rate = 15e6  # 2.7 s, and the lock's limit is 1 s without progress
    holder = start(store)
    go(holder)
    until(lambda: left(store) > 0)
    path = fetch([wanted(hub.repositories[REPO], NAME)], store, endpoint=hub.url, policy=FAST)[NAME]
    assert path.read_bytes() == content
    assert len(hub.seen("GET", "storage")) == 1
    assert hub.sent() == SIZE
