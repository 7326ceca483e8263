"""Fetching onto a disk that is full, gets full, or may not be written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub import StandIn
from unit.fetching import BYTES, CONFIG, MODEL, QUICK, REPO, check_consistent, get, partials, wanted
from unit.fetching import hub as hub  # noqa: PLC0414 - a fixture
from unit.fetching import store as store  # noqa: PLC0414 - a fixture

from qlangchain.artifacts import transfer
from qlangchain.artifacts.store import Store
from qlangchain.errors import ArtifactError, DiskFullError

# A real limit of the system: a write beyond so many bytes of a file fails as on a full disk (EFBIG).
LIMITED = """
import json, resource, sys
from pathlib import Path
from qlangchain.artifacts.download import FetchPolicy, Wanted, fetch
from qlangchain.artifacts.listing import RemoteFile
from qlangchain.artifacts.store import Store
from qlangchain.errors import DiskFullError
asked = json.loads(sys.argv[1])
wanted = Wanted(asked["repo"], asked["commit"], RemoteFile(**asked["file"]))
outcomes = []
for limit in asked["limits"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        fetch([wanted], Store(Path(asked["store"])), endpoint=asked["endpoint"], policy=FetchPolicy(margin_bytes=0))
        outcomes.append("ok")
    except DiskFullError:
        outcomes.append("full")
print(json.dumps(outcomes))
"""


def test_room_for_everything_is_asked_for_before_the_first_byte(hub: StandIn, store: Store) -> None:
    free = store.free_bytes()
    with pytest.raises(DiskFullError, match="GiB are missing") as caught:
        get(hub, store, MODEL, CONFIG, policy=replace(QUICK, margin_bytes=free))
    assert "QLANGCHAIN_HOME" in caught.value.hint
    assert hub.requests == []
    get(hub, store, MODEL, CONFIG)
    # What is there needs no room.
    get(hub, store, MODEL, CONFIG, policy=replace(QUICK, margin_bytes=free * 2))


def test_announced_sizes_are_added_up(hub: StandIn, store: Store) -> None:
    honest = wanted(hub.repositories[REPO])
    half = store.free_bytes() * 6 // 10
    files = [
        replace(honest, file=replace(honest.file, name=f"{number}.gguf", size_bytes=half, sha256=f"{number}" * 64))
        for number in (1, 2)
    ]
    from qlangchain.artifacts.download import fetch

    with pytest.raises(DiskFullError):
        fetch(files, store, endpoint=hub.url, policy=QUICK)
    assert hub.requests == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_at_any_write(code: int, hub: StandIn, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK", 64 * 1024)
    real, room = os.write, 0

    def write(descriptor: int, content: Any) -> int:
        nonlocal room
        if len(content) < 1000:  # a lock's note
            return real(descriptor, content)
        if room <= 0:
            raise OSError(code, os.strerror(code))
        written = real(descriptor, content[:room])  # a disk takes what it can before it refuses
        room -= written
        return written

    monkeypatch.setattr(os, "write", write)
    failures = 0
    while not store.known(wanted(hub.repositories[REPO]).file.digest):
        before = sum(path.stat().st_size for path in partials(store))
        room = 50_001
        try:
            path = get(hub, store)[MODEL]
        except DiskFullError:
            failures += 1
            (partial,) = partials(store)
            assert partial.stat().st_size == before + 50_001
            assert BYTES.startswith(partial.read_bytes())
    assert failures == len(BYTES) // 50_001
    assert path.read_bytes() == BYTES
    assert partials(store) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_limit_of_the_system_at_any_size(hub: StandIn, store: Store) -> None:
    file = wanted(hub.repositories[REPO])
    limits = [0, 1, 200, 10_000, 300_000, 599_999, 600_000, 600_001]
    asked = {
        "repo": REPO,
        "commit": file.commit,
        "file": {name: getattr(file.file, name) for name in ("name", "size_bytes", "sha256", "blob_id")},
        "store": str(store.root),
        "endpoint": hub.url,
        "limits": limits,
    }
    command = [sys.executable, "-c", LIMITED, json.dumps(asked)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert json.loads(ended.stdout) == ["full"] * 7 + ["ok"]
    check_consistent(store)
    assert partials(store) == []
    assert store.known(file.file.digest) is not None
    begun = [seen.headers.get("range", "bytes=0-") for seen in hub.seen("GET", "storage")]
    assert begun == [f"bytes={limit}-" for limit in [0, *limits[:-1]]], "each try goes on where the disk was full"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_not_be_written(hub: StandIn, store: Store) -> None:
    get(hub, store, CONFIG)
    for path in [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]:
        path.chmod(0o555)
    try:
        assert get(hub, store, CONFIG)[CONFIG].exists(), "what is there can be used"
        with pytest.raises(ArtifactError, match="cannot be written"):
            get(hub, store)
    finally:
        for path in [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]:
            path.chmod(0o755)


def test_a_store_in_the_place_of_a_file(hub: StandIn, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "store").write_text("not a directory")
    with pytest.raises(ArtifactError):
        get(hub, Store(tmp_path / "home" / "store"))
    assert hub.requests == []
