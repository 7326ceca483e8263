"""What the tests of fetching share: a hub with one model, a store, short limits, and what must hold after any fetch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import TOKEN, Repository, StandIn, seeded

from qlangchain.artifacts.download import FetchPolicy, Wanted, fetch
from qlangchain.artifacts.listing import RemoteFile
from qlangchain.artifacts.store import Store

REPO, MODEL, CONFIG = "org/model-GGUF", "sub dir/model-Q4_K_M.gguf", "config.json"
BYTES = seeded(600_001, 1)
DEADLINE = 20.0  # seconds; only a failing test waits so long
QUICK = FetchPolicy(
    attempts=4,
    first_wait=0.01,
    longest_wait=0.05,
    longest_retry_after=1.5,
    connect=2,
    stall=0.3,
    slowest=1,
    lock=5,
    margin_bytes=0,
    range_from=1 << 40,
)


def wanted(repository: Repository, name: str = MODEL) -> Wanted:
    """The file as an honest listing would name it."""
    commit = repository.refs["main"]
    content = repository.history[commit][name]
    sha256 = content.sha256 if content.is_large else None
    return Wanted(repository.id, commit, RemoteFile(name, len(content.data), sha256, content.blob_id))


@pytest.fixture
def hub() -> Iterator[StandIn]:
    with StandIn() as hub:
        hub.add(REPO, {MODEL: BYTES, CONFIG: b'{"model_type": "llama"}'})
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home" / "store")


def get(hub: StandIn, store: Store, *names: str, **options: Any) -> dict[str, Path]:
    """Fetch files of the model with short limits, and hold the outcome to what must always hold."""
    files = [wanted(hub.repositories[REPO], name) for name in names or (MODEL,)]
    options = {"endpoint": hub.url, "token": TOKEN, "deadline": DEADLINE, "policy": QUICK, **options}
    try:
        return fetch(files, store, **options)
    finally:
        check_consistent(store)
        check_token_kept(hub)


def check_consistent(store: Store) -> None:
    """Every blob has the digest that it is named by, and nothing was written beside the store."""
    for blob in (store.root / "blobs").glob("*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        assert blob.stat().st_mode & 0o222 == 0
    beside = {path.name for path in store.root.parent.iterdir()} if store.root.parent.exists() else set()
    assert beside <= {store.root.name}


def check_token_kept(hub: StandIn) -> None:
    """The token has gone to the hub's own origin only, and there as a header."""
    for seen in hub.seen():
        assert TOKEN not in seen.path
        if seen.origin != "hub":
            assert not any(TOKEN in value for value in seen.headers.values())


def partials(store: Store) -> list[Path]:
    """What is left of unfinished transfers."""
    return sorted((store.root / "partial").glob("*"))
