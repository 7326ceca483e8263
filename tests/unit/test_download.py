"""Fetching as programs use it: progress, cancelling, deadlines, several files and ranges at once, hostile listings."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from hub import TOKEN, StandIn, seeded
from unit.fetching import BYTES, CONFIG, MODEL, QUICK, REPO, get, partials, wanted
from unit.fetching import hub as hub  # noqa: PLC0414 - a fixture
from unit.fetching import store as store  # noqa: PLC0414 - a fixture

from qlangchain.artifacts.download import FetchProgress, fetch
from qlangchain.artifacts.store import Store
from qlangchain.errors import (
    FetchCancelledError,
    HubReplyError,
    HubUnreachableError,
    InvalidInputError,
    QlangchainError,
    UnsafeSourceError,
)

RANGES = replace(QUICK, range_from=100_000, range_bytes=50_000, connections=3)


def test_nothing_is_asked_for_what_is_there(hub: StandIn, store: Store) -> None:
    first = get(hub, store, MODEL, CONFIG)
    hub.requests.clear()
    assert get(hub, store, MODEL, CONFIG) == first
    assert hub.requests == []


def test_progress_adds_up(hub: StandIn, store: Store) -> None:
    hub.add(REPO, {MODEL: BYTES, CONFIG: b"{}", "empty.txt": b"", "twin.gguf": BYTES})
    store.partial(wanted(hub.repositories[REPO]).file.digest).write_bytes(BYTES[:200_001])
    hub.rate = 1e6
    seen: list[FetchProgress] = []
    thread = threading.get_ident()

    def progress(now: FetchProgress) -> None:
        assert threading.get_ident() == thread
        seen.append(now)

    paths = get(hub, store, MODEL, CONFIG, "empty.txt", "twin.gguf", progress=progress)
    assert paths["twin.gguf"] == paths[MODEL]
    last = seen[-1]
    assert (last.done_bytes, last.total_bytes) == (len(BYTES) + 2,) * 2
    assert last.moved_bytes == len(BYTES) + 2 - 200_001
    assert (last.files, last.files_done, last.seconds_left) == (3, 3, 0.0)
    assert [now.done_bytes for now in seen] == sorted(now.done_bytes for now in seen)
    assert any(200_001 <= now.done_bytes < last.total_bytes for now in seen)
    assert 0 < last.rate < 2e6
    seen.clear()
    get(hub, store, MODEL, CONFIG, progress=progress)
    assert seen[-1].done_bytes == seen[-1].total_bytes == len(BYTES) + 2
    assert FetchProgress(0, 9, 0, 0.0, 1, 0).seconds_left is None


def test_a_failing_callback_ends_the_fetch(hub: StandIn, store: Store) -> None:
    hub.rate = 1e6

    def progress(now: FetchProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(hub, store, progress=progress)
    assert threads() == []


@pytest.mark.parametrize("fault", [None, "stall", "stall before headers", "503", "429 seconds"])
@pytest.mark.parametrize("policy", [QUICK, RANGES], ids=["one stream", "ranges"])
def test_cancelling_takes_a_moment(fault: str | None, policy: Any, hub: StandIn, store: Store) -> None:
    hub.rate = 300_000
    if fault:
        hub.fault(fault, -1)
    cancel = threading.Event()
    threading.Timer(0.4, cancel.set).start()
    begun = time.monotonic()
    patient = replace(policy, stall=30, attempts=99, first_wait=9, longest_wait=9)
    with pytest.raises(FetchCancelledError):
        get(hub, store, cancel=cancel, policy=patient)
    assert 0.35 < time.monotonic() - begun < 5
    assert threads() == []
    hub.heal()
    hub.rate = None
    assert get(hub, store, policy=policy)[MODEL].read_bytes() == BYTES


def test_cancelled_before_it_began(hub: StandIn, store: Store) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(FetchCancelledError):
        get(hub, store, cancel=cancel)
    assert hub.requests == []


@pytest.mark.parametrize("fault", [None, "stall", "stall before headers", "503"])
def test_no_call_is_longer_than_its_deadline(fault: str | None, hub: StandIn, store: Store) -> None:
    hub.rate = 100_000  # six seconds
    if fault:
        hub.fault(fault, -1)
    begun = time.monotonic()
    with pytest.raises(HubUnreachableError) as caught:
        get(hub, store, deadline=1.0, policy=replace(QUICK, stall=30, attempts=99, longest_wait=0.2))
    assert time.monotonic() - begun < 3
    assert caught.value.is_retryable
    if fault == "503":
        assert "503" in str(caught.value), "the reason is said, not only the time"


def test_a_trickle_counts_as_a_stall(hub: StandIn, store: Store) -> None:
    hub.rate = 20_000
    with pytest.raises(HubUnreachableError, match="Only"):
        get(hub, store, policy=replace(QUICK, slowest=1_000_000, attempts=2))


def test_no_connection(store: Store) -> None:
    with StandIn() as gone:
        gone.add(REPO, {MODEL: BYTES})
    with pytest.raises(HubUnreachableError, match="refused"):
        get(gone, store)


# Several at once.


def test_several_files_at_once(hub: StandIn, store: Store) -> None:
    shards = {f"m-{number:05d}-of-00007.gguf": seeded(300_000, number) for number in range(1, 8)}
    hub.add(REPO, shards)
    hub.fault("reset during the body", 2)
    hub.fault("503", 2)
    paths = get(hub, store, *shards)
    assert {name: path.read_bytes() for name, path in paths.items()} == shards


def test_the_first_failure_ends_the_others(hub: StandIn, store: Store) -> None:
    hub.add(REPO, {"a.gguf": seeded(400_000, 1), "b.gguf": seeded(400_000, 2)})
    digest = wanted(hub.repositories[REPO], "b.gguf").file.sha256 or ""
    hub.rate = 100_000
    hub.fault("HTML page", -1, path=digest)
    begun = time.monotonic()
    with pytest.raises(HubReplyError, match=r"web page comes instead of .*b\.gguf"):
        get(hub, store, "a.gguf", "b.gguf")
    assert time.monotonic() - begun < 3
    assert threads() == []
    assert [path for path in partials(store) if path.stat().st_size] != [], "what has arrived of the other is kept"


@pytest.mark.parametrize(
    "fault", [None, "FIN early", "reset during the body", "503", "short range", "corrupt", "403 expired"]
)
def test_ranges_at_once(fault: str | None, hub: StandIn, store: Store) -> None:
    if fault:
        hub.fault(fault, 2, skip=4)
    assert get(hub, store, policy=RANGES)[MODEL].read_bytes() == BYTES
    asked = {seen.headers["range"] for seen in hub.seen("GET", "storage")}
    assert len(asked) >= 13
    assert threads() == []


def test_ranges_go_on_where_a_stream_ended(hub: StandIn, store: Store) -> None:
    store.partial(wanted(hub.repositories[REPO]).file.digest).write_bytes(BYTES[:333_333])
    assert get(hub, store, policy=RANGES)[MODEL].read_bytes() == BYTES
    assert hub.sent() == len(BYTES) - 333_333


@pytest.mark.parametrize("fault", ["range ignored", "shifted range", "HTML page"])
def test_storage_that_serves_no_ranges_gets_one_stream(fault: str, hub: StandIn, store: Store) -> None:
    hub.fault(fault, 1 if fault != "range ignored" else -1)
    assert get(hub, store, policy=RANGES)[MODEL].read_bytes() == BYTES


# Listings that no honest hub gives.


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"repo": "../../api"}, InvalidInputError),
        ({"repo": "org"}, InvalidInputError),
        ({"repo": "org/name@main"}, InvalidInputError),
        ({"commit": "main"}, HubReplyError),
        ({"commit": "../" + "0" * 37}, HubReplyError),
        ({"name": "../../etc/passwd"}, UnsafeSourceError),
        ({"name": "/etc/passwd"}, UnsafeSourceError),
        ({"name": "a\\..\\b.gguf"}, UnsafeSourceError),
        ({"name": "a\nb.gguf"}, UnsafeSourceError),
        ({"sha256": None, "blob_id": None}, HubReplyError),
        ({"sha256": "../../../etc/passwd"}, HubReplyError),
        ({"sha256": "AB" * 32}, HubReplyError),
        ({"size_bytes": -1}, HubReplyError),
        ({"size_bytes": 1 << 70}, HubReplyError),
        ({"size_bytes": 1.5}, HubReplyError),
    ],
    ids=str,
)
def test_a_hostile_listing_is_refused(
    about: dict[str, Any], expected: type[QlangchainError], hub: StandIn, store: Store
) -> None:
    right = wanted(hub.repositories[REPO])
    file = replace(right.file, **{key: value for key, value in about.items() if key not in ("repo", "commit")})
    bad = replace(right, file=file, **{key: value for key, value in about.items() if key in ("repo", "commit")})
    with pytest.raises(expected):
        fetch([right, bad], store, endpoint=hub.url, policy=QUICK)
    assert hub.requests == []
    assert not store.root.exists()


def test_two_files_of_one_name(hub: StandIn, store: Store) -> None:
    one = wanted(hub.repositories[REPO])
    other = replace(one, file=replace(one.file, sha256="0" * 64))
    with pytest.raises(InvalidInputError, match="Two files"):
        fetch([one, other], store, endpoint=hub.url, policy=QUICK)


@pytest.mark.parametrize("token", ["two words", "line\r\nX: y", "naïve", "\x00"])
def test_a_token_that_cannot_be_one_is_not_shown(token: str, hub: StandIn, store: Store) -> None:
    with pytest.raises(InvalidInputError, match="token") as caught:
        fetch([wanted(hub.repositories[REPO])], store, endpoint=hub.url, token=token, policy=QUICK)
    assert token not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["", "huggingface.co", "ftp://huggingface.co", "https://a:b@c", "https://[::1"])
def test_an_endpoint_that_is_none(endpoint: str, hub: StandIn, store: Store) -> None:
    with pytest.raises(InvalidInputError, match="HF_ENDPOINT"):
        fetch([wanted(hub.repositories[REPO])], store, endpoint=endpoint, policy=QUICK)


def test_a_token_does_not_travel_in_clear_text(hub: StandIn, store: Store) -> None:
    with pytest.raises(InvalidInputError, match="clear text"):
        fetch([wanted(hub.repositories[REPO])], store, endpoint="http://hub.example", token=TOKEN, policy=QUICK)


# Engines of other tests have threads of their own, which last.
_OF_A_FETCH = ("qlangchain-fetch", "qlangchain-range", "qlangchain-within")


def threads() -> list[str]:
    """The names of threads of a fetch that are still there a moment after it has ended."""
    end = time.monotonic() + 2
    while time.monotonic() < end:
        found = [thread.name for thread in threading.enumerate() if thread.name.startswith(_OF_A_FETCH)]
        if not found:
            break
        time.sleep(0.01)
    return found
