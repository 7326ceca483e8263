"""The way to a server: what is tried again, what is not, and what is given back in every case."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer, Play, answer, broken, chunk, cut, events, running, silence, stream, unused_url

from qlangchain.errors import (
    AuthenticationError,
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineFailedError,
    EngineStartError,
    EngineTimeoutError,
    NotConnectedError,
    RequestRejectedError,
    UnsupportedRequestError,
)
from qlangchain.runtimes import pool
from qlangchain.runtimes.channel import Channel
from qlangchain.runtimes.protocol import CHAT, Delta
from qlangchain.types import Artifact, Endpoint, EngineOptions, Method, Origin

CONTENT = {"messages": [{"role": "user", "content": "Hello"}]}
BUSY = answer(503, {"error": {"message": "loading"}})
TOO_MANY = answer(429, {"error": {"message": "slower"}})
ARTIFACT = Artifact(Path("model.gguf"), Method.GGUF, "Q8_0", "digest", 1, Origin.FOUND, "m")

Ask = Callable[..., list[Delta]]


def ask_sync(channel: Channel, *, into: list[Delta] | None = None, sampling: Any = None, **how: Any) -> list[Delta]:
    got = [] if into is None else into
    got.extend(channel.stream(CHAT, CONTENT, sampling or {}, **how))
    return got


def ask_async(channel: Channel, *, into: list[Delta] | None = None, sampling: Any = None, **how: Any) -> list[Delta]:
    got = [] if into is None else into

    async def read() -> None:
        async for delta in channel.astream(CHAT, CONTENT, sampling or {}, **how):
            got.append(delta)

    asyncio.run(read())
    return got


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with running() as playing:
        yield playing


def to(server: FaultServer) -> Channel:
    return Channel(endpoint=Endpoint(server.url))


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


# What is tried again.


@pytest.mark.parametrize("play", [BUSY, TOO_MANY, events({"error": {"code": 503, "message": "loading"}})])
def test_a_busy_server_is_asked_again(server: FaultServer, ask: Ask, play: Play) -> None:
    server.plays = [play, play, stream("a", "b")]
    assert text(ask(to(server), max_retries=2)) == "ab"
    assert len(server.requests) == 3
    assert len({request.raw_body for request in server.requests}) == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_only_so_many_times(server: FaultServer, ask: Ask, retries: int) -> None:
    server.plays = [BUSY]
    with pytest.raises(EngineBusyError):
        ask(to(server), max_retries=retries)
    assert len(server.requests) == retries + 1


def test_a_refused_connection_is_tried_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Lent([unused_url(), unused_url()])
    monkeypatch.setattr(pool, "shared", lambda: engine)
    with running() as server:
        server.plays = [stream("a")]
        engine.urls.append(server.url)
        assert text(ask(LOCAL)) == "a"
    assert (engine.entered, engine.exited) == (3, 3)


def test_a_server_that_is_never_there(ask: Ask) -> None:
    with pytest.raises(NotConnectedError):
        ask(Channel(endpoint=Endpoint(unused_url())), max_retries=1)


def test_a_dead_greeting_is_tried_again(server: FaultServer, ask: Ask) -> None:
    server.plays = [broken(), answer(200, {}), stream("a")]
    assert text(ask(Channel(endpoint=Endpoint(server.url, greeting="/health")))) == "a"
    assert len(server.posts) == 1


# What is not.


@pytest.mark.parametrize(
    ("play", "expected", "before"),
    [
        (broken(), EngineDiedError, ""),
        (broken("Hel"), EngineDiedError, "Hel"),
        (cut("Hel"), EngineDiedError, "Hel"),
        (stream("Hel", finish=None), EngineDiedError, "Hel"),
        (silence(), EngineTimeoutError, ""),
        (silence("Hel"), EngineTimeoutError, "Hel"),
        (answer(500, {"error": {"message": "oops"}}), EngineFailedError, ""),
        (answer(400, {"error": {"message": "no"}}), RequestRejectedError, ""),
        (answer(401, {"error": {"message": "no"}}), AuthenticationError, ""),
        (events(chunk("Hel"), {"error": {"code": 503, "message": "busy"}}), EngineBusyError, "Hel"),
        (events(chunk(), {"error": {"code": 503, "message": "busy"}}), EngineBusyError, ""),
    ],
)
def test_what_may_have_begun_is_asked_once(
    server: FaultServer, ask: Ask, play: Play, expected: type[EngineError], before: str
) -> None:
    server.plays = [play]
    got: list[Delta] = []
    with pytest.raises(EngineError) as caught:
        ask(to(server), into=got, timeout=0.2, max_retries=5)
    assert type(caught.value) is expected
    assert text(got) == before
    assert len(server.requests) == 1


def test_what_a_server_would_ignore_is_not_sent(server: FaultServer, ask: Ask) -> None:
    with pytest.raises(UnsupportedRequestError, match="top_k"):
        ask(to(server), sampling={"top_k": 5})
    assert server.requests == []


# What is given back.


class Lent:
    """A pool that counts: each lease lends the next of `urls` (the last one again and again)."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self.entered = self.exited = 0
        self.error: BaseException | None = None
        self.loading = threading.Event()
        self.loaded = threading.Event()
        self.loaded.set()

    @contextlib.contextmanager
    def lease(self, runtime: str, artifact: Artifact, options: EngineOptions) -> Iterator[Endpoint]:
        assert (runtime, artifact) == ("llamacpp", ARTIFACT)
        self.entered += 1
        try:
            self.loading.set()
            assert self.loaded.wait(10)
            if self.error:
                raise self.error
            yield Endpoint(self.urls.pop(0) if len(self.urls) > 1 else self.urls[0])
        finally:
            self.exited += 1


LOCAL = Channel(runtime="llamacpp", artifact=ARTIFACT, options=EngineOptions(512))


@pytest.fixture
def lent(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Lent:
    engine = Lent([server.url])
    monkeypatch.setattr(pool, "shared", lambda: engine)
    return engine


@pytest.mark.parametrize("play", [stream("a"), broken("a"), BUSY, answer(400, "no"), silence()])
def test_every_lease_ends(server: FaultServer, lent: Lent, ask: Ask, play: Play) -> None:
    server.plays = [play]
    with contextlib.suppress(EngineError):
        ask(LOCAL, timeout=0.2, max_retries=1)
    assert lent.entered == lent.exited > 0


def test_a_lease_that_fails_is_not_tried_again(lent: Lent, ask: Ask) -> None:
    lent.error = EngineStartError("It does not load.", log="why")
    with pytest.raises(EngineStartError) as caught:
        ask(LOCAL)
    assert caught.value.log == "why"
    assert (lent.entered, lent.exited) == (1, 1)


def test_closing_the_iterator_ends_the_lease(server: FaultServer, lent: Lent) -> None:
    server.plays = [silence("a")]
    deltas = LOCAL.stream(CHAT, CONTENT, {})
    next(deltas)
    assert lent.exited == 0
    deltas.close()  # type: ignore[attr-defined]
    assert lent.exited == 1
    assert server.closed.wait(10)


async def test_closing_the_async_iterator_ends_the_lease(server: FaultServer, lent: Lent) -> None:
    server.plays = [silence("a")]
    async with contextlib.aclosing(LOCAL.astream(CHAT, CONTENT, {})) as deltas:  # type: ignore[type-var]
        await anext(deltas)
        assert lent.exited == 0
    assert lent.exited == 1
    assert await asyncio.to_thread(server.closed.wait, 10)


async def test_cancelling_a_running_request_ends_the_lease(server: FaultServer, lent: Lent) -> None:
    server.plays = [silence()]
    task = asyncio.create_task(anext(LOCAL.astream(CHAT, CONTENT, {})))  # type: ignore[arg-type]
    assert await asyncio.to_thread(server.arrived.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (lent.entered, lent.exited) == (1, 1)


async def test_cancelling_while_the_engine_loads_ends_the_lease(server: FaultServer, lent: Lent) -> None:
    server.plays = [stream("a")]
    lent.loaded.clear()
    task = asyncio.create_task(anext(LOCAL.astream(CHAT, CONTENT, {})))  # type: ignore[arg-type]
    assert await asyncio.to_thread(lent.loading.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    lent.loaded.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline = asyncio.get_running_loop().time() + 10
    while not lent.exited and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - a thread ends it
        await asyncio.sleep(0.005)
    assert (lent.entered, lent.exited) == (1, 1)
    assert server.requests == []


async def test_the_event_loop_goes_on_while_the_engine_loads(server: FaultServer, lent: Lent) -> None:
    server.plays = [stream("a")]
    lent.loaded.clear()

    async def read() -> str:
        return text([delta async for delta in LOCAL.astream(CHAT, CONTENT, {})])

    task = asyncio.create_task(read())
    assert await asyncio.to_thread(lent.loading.wait, 10)
    lent.loaded.set()  # only a loop that is not blocked comes here
    assert await task == "a"


def test_starting_without_a_request(lent: Lent, server: FaultServer) -> None:
    assert LOCAL.start().base_url == server.url
    assert (lent.entered, lent.exited) == (1, 1)
    assert Channel(endpoint=Endpoint("http://a")).start() == Endpoint("http://a")
    assert server.requests == []
