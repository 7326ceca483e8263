"""Fetching from a hub that has a bad day: recovered, or the right error in time; never a wrong byte, never a token."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub import FAULTS, TOKEN, StandIn, seeded
from unit.fetching import BYTES, CONFIG, DEADLINE, MODEL, QUICK, REPO, get, partials, wanted
from unit.fetching import hub as hub  # noqa: PLC0414 - a fixture
from unit.fetching import store as store  # noqa: PLC0414 - a fixture

from qlangchain.artifacts.download import FetchPolicy, FetchProgress, fetch, read_range
from qlangchain.artifacts.store import Store
from qlangchain.errors import (
    AccessDeniedError,
    ArtifactError,
    ChecksumError,
    HubBusyError,
    HubReplyError,
    HubUnreachableError,
    ModelNotFoundError,
    QlangchainError,
    RevisionNotFoundError,
    UnsafeSourceError,
)

# What a fault comes to: (struck once, struck for ever); None is a whole file.
Outcome = type[ArtifactError] | None
OUTCOMES: dict[str, tuple[Outcome, Outcome]] = {
    "reset before headers": (None, HubUnreachableError),
    "closed before headers": (None, HubUnreachableError),
    "reset during the body": (None, HubUnreachableError),  # each attempt gets half of the rest, ever less
    "FIN early": (None, HubUnreachableError),
    "stall": (None, HubUnreachableError),
    "stall before headers": (None, HubUnreachableError),
    "garbage": (None, HubReplyError),
    "400": (None, HubReplyError),
    "403 expired": (None, HubReplyError),
    "404": (None, HubReplyError),
    "408": (None, HubUnreachableError),
    "416": (None, HubReplyError),
    "429 seconds": (None, HubBusyError),
    "429 date": (None, HubBusyError),
    "429 a day": (HubBusyError, HubBusyError),
    "429 rate limit": (None, HubBusyError),
    "429 silent": (None, HubBusyError),
    "500": (None, HubUnreachableError),
    "502": (None, HubUnreachableError),
    "503": (None, HubUnreachableError),
    "short body": (None, HubReplyError),
    "short range": (None, HubUnreachableError),
    "corrupt": (None, ChecksumError),
    "random content": (None, ChecksumError),
    "shifted range": (None, HubReplyError),
    "shifted silently": (None, ChecksumError),
    "range ignored": (None, None),
    "HTML page": (None, HubReplyError),
    "compressed": (None, HubReplyError),
    "announces gigabytes": (None, HubReplyError),
    "lying HEAD size": (HubReplyError, HubReplyError),
    "lying HEAD digest": (HubReplyError, HubReplyError),
    "lying HEAD commit": (HubReplyError, HubReplyError),
    "hostile ETag": (HubReplyError, HubReplyError),
    "redirect to metadata": (UnsafeSourceError, UnsafeSourceError),
    "redirect to private": (UnsafeSourceError, UnsafeSourceError),
    "redirect to http": (UnsafeSourceError, UnsafeSourceError),
    "redirect to file": (UnsafeSourceError, UnsafeSourceError),
    "redirect without address": (HubReplyError, HubReplyError),
    "redirect loop": (None, HubReplyError),
    "asks for the token": (None, HubReplyError),
}
OF_LISTINGS = {"lying listing size", "lying listing digest"}
RANGES = replace(QUICK, range_from=100_000, range_bytes=50_000, connections=3)
PASSING = [
    "reset before headers", "closed before headers", "stall before headers", "garbage", "408", "500", "503",
    "HTML page",
]  # fmt: skip


def strike(hub: StandIn, name: str, times: int, **more: Any) -> None:
    """Have the fault strike where the model is asked for: faults of addresses by the hub's HEAD, which gives them."""
    if FAULTS[name].origin == "hub":
        more = {"method": "HEAD", **more}
    hub.fault(name, times, **more)


def test_every_fault_of_the_table_is_tried() -> None:
    assert set(OUTCOMES) | OF_LISTINGS == set(FAULTS)


@pytest.mark.parametrize("times", [1, -1], ids=["once", "for ever"])
@pytest.mark.parametrize("name", OUTCOMES)
def test_a_fault(name: str, times: int, hub: StandIn, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    expected = OUTCOMES[name][times != 1]
    strike(hub, name, times)
    begun = time.monotonic()
    if expected is None:
        assert get(hub, store)[MODEL].read_bytes() == BYTES
        assert partials(store) == []
    else:
        few = replace(QUICK, attempts=2) if name.startswith("429") else QUICK  # each of them waits a second
        with pytest.raises(expected) as caught:
            get(hub, store, policy=few)
        assert type(caught.value) is expected
        assert caught.value.hint
        assert TOKEN not in f"{caught.value!r}{caught.value}"
        assert not list((store.root / "blobs").glob("*"))
        hub.heal()
        assert get(hub, store)[MODEL].read_bytes() == BYTES, "a failure leaves nothing that keeps the next from working"
    assert time.monotonic() - begun < DEADLINE
    assert TOKEN not in caplog.text
    assert "Signature=" not in caplog.text, "who has a signed address has the file"


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_of_the_hub_itself_passes(name: str, hub: StandIn, store: Store) -> None:
    hub.fault(name, 1, origin="hub", method="HEAD")
    assert get(hub, store)[MODEL].read_bytes() == BYTES


@pytest.mark.parametrize("name", ["429 a day", "503"])
def test_a_hub_that_stays_busy_or_broken_is_given_up(name: str, hub: StandIn, store: Store) -> None:
    hub.fault(name, -1, origin="hub", method="HEAD")
    with pytest.raises(HubBusyError if name.startswith("429") else HubUnreachableError) as caught:
        get(hub, store)
    assert caught.value.is_retryable
    if isinstance(caught.value, HubBusyError):
        assert caught.value.retry_after == 86400
        assert len(hub.requests) == 1
    else:
        assert len(hub.requests) == QUICK.attempts


@pytest.mark.parametrize("name", ["429 seconds", "429 date", "429 rate limit"])
def test_the_time_that_a_server_asks_for_is_waited(name: str, hub: StandIn, store: Store) -> None:
    hub.fault(name, 1, seconds=1)
    get(hub, store, policy=QUICK)
    waits = [seen for seen in hub.requests if seen.status == 429]
    assert len(waits) == 1
    head, first, again, *_ = hub.requests
    assert (head.method, first.status, again.method) == ("HEAD", 429, "HEAD")
    # A date has whole seconds: up to one second of the two is lost by cutting it.
    assert again.at - first.at >= (0.9 if name != "429 date" else 0.0)


def test_no_wait_goes_beyond_the_deadline(hub: StandIn, store: Store) -> None:
    hub.fault("429 seconds", -1)
    with pytest.raises(HubBusyError, match=r"We wait at most 1 s|We wait at most 0 s"):
        get(hub, store, deadline=0.7)
    assert len(hub.seen("GET", "storage")) == 1


def test_wrong_bytes_are_set_aside(hub: StandIn, store: Store) -> None:
    hub.fault("corrupt", -1)
    with pytest.raises(ChecksumError, match="twice"):
        get(hub, store)
    aside = [path for path in (store.root / "quarantine").iterdir() if path.suffix != ".json"]
    assert len(aside) == 2
    assert len(hub.seen("GET", "storage")) == 2
    assert partials(store) == []


def test_an_interrupted_file_is_continued_by_the_next_call(hub: StandIn, store: Store) -> None:
    hub.fault("FIN early", 1, after=400_000)
    hub.fault("503", -1)
    with pytest.raises(HubUnreachableError):
        get(hub, store)
    (partial,) = partials(store)
    assert partial.read_bytes() == BYTES[:400_000]
    hub.heal()
    before = hub.sent()
    assert get(hub, store)[MODEL].read_bytes() == BYTES
    assert hub.sent() - before == len(BYTES) - 400_000
    assert hub.seen("GET", "storage")[-1].headers["range"] == "bytes=400000-"


@pytest.mark.parametrize("fault", ["range ignored", "416", "shifted range", "shifted silently"])
def test_continuing_from_a_server_that_has_it_wrong(fault: str, hub: StandIn, store: Store) -> None:
    partial = store.partial(wanted(hub.repositories[REPO]).file.digest)
    partial.write_bytes(BYTES[:300_000])
    hub.fault(fault, 1)
    assert get(hub, store)[MODEL].read_bytes() == BYTES


@pytest.mark.parametrize(
    "left", [BYTES, BYTES + b"more", b"\0" * 300_000, b"\0" * len(BYTES), b""], ids=lambda left: f"{len(left)} bytes"
)
def test_whatever_an_earlier_process_left_is_checked(left: bytes, hub: StandIn, store: Store) -> None:
    store.partial(wanted(hub.repositories[REPO]).file.digest).write_bytes(left)
    assert get(hub, store)[MODEL].read_bytes() == BYTES
    assert (len(hub.requests) == 0) == (left == BYTES), "what is whole is published without asking"


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"something else")


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def replace_it(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(len(BYTES)))
    other.replace(path)


@pytest.mark.parametrize(
    "spoil",
    [overwrite, replace_it, Path.unlink, lambda path: os.truncate(path, 500), lengthen],
    ids=["overwritten", "replaced", "deleted", "cut", "lengthened"],
)
@pytest.mark.parametrize("policy", [QUICK, RANGES], ids=["stream", "ranges"])
def test_what_others_do_to_the_partial_file_is_noticed(
    spoil: Callable[[Path], object], policy: FetchPolicy, hub: StandIn, store: Store
) -> None:
    """What is hashed on its way to the disk proves nothing of what lies there, where something else writes as well."""
    hub.rate = 1e6
    done: list[int] = []

    def progress(now: FetchProgress) -> None:
        if now.done_bytes > 100_000 and not done:
            spoil(store.partial(wanted(hub.repositories[REPO]).file.digest))
            done.append(now.done_bytes)

    assert get(hub, store, progress=progress, policy=policy)[MODEL].read_bytes() == BYTES
    assert done and done[0] < len(BYTES)


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(hub: StandIn, store: Store) -> None:
    partial = store.partial(wanted(hub.repositories[REPO]).file.digest)
    victim = store.root / "victim"
    victim.write_bytes(b"mine")
    partial.symlink_to(victim)
    assert get(hub, store)[MODEL].read_bytes() == BYTES
    assert victim.read_bytes() == b"mine"


def test_each_attempt_asks_for_a_fresh_address(hub: StandIn, store: Store) -> None:
    hub.fault("403 expired", 2)
    get(hub, store)
    addresses = [seen.path for seen in hub.seen("GET", "storage")]
    assert len(set(addresses)) == 3


def test_small_files_are_verified_by_gits_blob_id(hub: StandIn, store: Store) -> None:
    assert get(hub, store, CONFIG)[CONFIG].read_bytes() == b'{"model_type": "llama"}'
    seen = len(hub.requests)
    get(hub, store, CONFIG, MODEL)
    assert not [r for r in hub.requests[seen:] if CONFIG in r.path], "what is there is not asked for"
    hub.add("org/other", {CONFIG: b'{"model_type": "other"}'})
    hub.fault("corrupt", -1, origin="hub", path="resolve-cache")
    with pytest.raises(ChecksumError):
        fetch([wanted(hub.repositories["org/other"], CONFIG)], store, endpoint=hub.url, policy=QUICK)


# Refusals of the hub.


@pytest.mark.parametrize(
    ("about", "token", "expected", "says"),
    [
        ({"gated": "manual"}, None, AccessDeniedError, "licence"),
        ({"gated": "manual"}, TOKEN, AccessDeniedError, "has not been given access"),
        ({"gated": "manual", "granted": True}, TOKEN, None, ""),
        ({"private": True}, None, ModelNotFoundError, "private"),
        ({"private": True}, TOKEN, ModelNotFoundError, "token"),
        ({"disabled": True}, TOKEN, AccessDeniedError, "disabled"),
        ({}, "hf_wrong", AccessDeniedError, "does not accept the token"),
    ],
    ids=["gated, no token", "gated, not granted", "granted", "private", "private, token", "disabled", "bad token"],
)
def test_access(
    about: dict[str, Any], token: str | None, expected: Outcome, says: str, hub: StandIn, store: Store
) -> None:
    hub.add(REPO, {MODEL: BYTES}, **about)
    if expected is None:
        assert get(hub, store, token=token)[MODEL].read_bytes() == BYTES
        return
    with pytest.raises(expected, match=says) as caught:
        get(hub, store, token=token)
    assert type(caught.value) is expected
    assert len(hub.requests) == 1, "a refusal is not tried again"
    if isinstance(caught.value, AccessDeniedError):
        assert caught.value.url == f"{hub.url}/{REPO}"


def test_a_renamed_repository_is_followed(hub: StandIn, store: Store) -> None:
    old = wanted(hub.repositories[REPO])
    hub.rename(REPO, "new/name")
    (path,) = fetch([old], store, endpoint=hub.url, token=TOKEN, policy=QUICK).values()
    assert path.read_bytes() == BYTES


def test_what_has_gone_from_the_hub(hub: StandIn, store: Store) -> None:
    right = wanted(hub.repositories[REPO])
    gone = type(right)(REPO, "0" * 40, right.file)
    with pytest.raises(RevisionNotFoundError):
        fetch([gone], store, endpoint=hub.url, policy=QUICK)
    hub.repositories[REPO].history[right.commit].pop(MODEL)
    with pytest.raises(ModelNotFoundError, match="no file"):
        fetch([right], store, endpoint=hub.url, policy=QUICK)
    hub.fault("404", -1, origin="hub", method="HEAD")  # without the hub's own words for what is missing
    with pytest.raises(ModelNotFoundError, match="no file"):
        fetch([right], store, endpoint=hub.url, policy=QUICK)


def test_a_lying_listing_is_found_out_before_a_byte_is_asked_for(hub: StandIn, store: Store) -> None:
    right = wanted(hub.repositories[REPO])
    for lie in ({"size_bytes": 12345}, {"sha256": "ab" * 32}):
        named = {name: getattr(right.file, name) for name in ("name", "size_bytes", "sha256", "blob_id")} | lie
        with pytest.raises(HubReplyError, match="contradicts"):
            fetch([type(right)(REPO, right.commit, type(right.file)(**named))], store, endpoint=hub.url, policy=QUICK)
    assert hub.sent() == 0


# Reading a part.


def test_a_part_is_read_without_the_store(hub: StandIn) -> None:
    model = wanted(hub.repositories[REPO])
    for first, count in ((0, 1000), (599_000, 5000), (600_001, 1), (5, 0)):
        read = read_range(model, first, count, endpoint=hub.url, token=TOKEN, policy=QUICK)
        assert read == BYTES[first : first + count]
    assert hub.sent() < 3000


@pytest.mark.parametrize("name", [name for name, (_, ever) in OUTCOMES.items() if ever is not ChecksumError])
def test_a_part_of_a_hub_on_a_bad_day(name: str, hub: StandIn) -> None:
    model = wanted(hub.repositories[REPO])
    strike(hub, name, 1)
    expected = OUTCOMES[name][0]
    if expected is None:
        assert read_range(model, 1000, 5000, endpoint=hub.url, deadline=DEADLINE, policy=QUICK) == BYTES[1000:6000]
    else:
        with pytest.raises(expected):
            read_range(model, 1000, 5000, endpoint=hub.url, deadline=DEADLINE, policy=QUICK)


# All together.


@pytest.mark.parametrize("runs", [pytest.param(30, id="short"), pytest.param(500, id="long", marks=pytest.mark.soak)])
def test_no_mixture_of_faults_lets_a_wrong_byte_in(runs: int, hub: StandIn, store: Store) -> None:
    chance = random.Random(runs)
    slow = {"stall", "stall before headers", "429 seconds", "429 date", "429 rate limit"}
    kinds = [name for name, (once, _) in OUTCOMES.items() if once is None and name not in slow]
    failed = 0
    for run in range(runs):
        content = seeded(400_000, 1000 + run)
        hub.add(REPO, {MODEL: content})
        hub.heal()
        for name in chance.sample(kinds, chance.randint(0, 4)):
            strike(hub, name, chance.randint(1, 2), skip=chance.randint(0, 2))
        try:
            assert get(hub, store)[MODEL].read_bytes() == content
        except QlangchainError:
            failed += 1
            hub.heal()
            assert get(hub, store)[MODEL].read_bytes() == content
    assert failed < runs / 2
