"""The client against a server on loopback that breaks every promise, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import pickle
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from fault_server import (
    USAGE,
    FaultServer,
    Play,
    answer,
    broken,
    chunk,
    cut,
    events,
    pings,
    raw,
    running,
    silence,
    stream,
    unused_url,
)

from qlangchain.errors import (
    AuthenticationError,
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineFailedError,
    EngineTimeoutError,
    InvalidInputError,
    NotConnectedError,
    PromptTooLongError,
    QlangchainError,
    RequestRejectedError,
)
from qlangchain.runtimes import remote
from qlangchain.runtimes.client import Client
from qlangchain.runtimes.protocol import CHAT, Delta
from qlangchain.types import Endpoint

KEY = "sk-0123456789-very-secret"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}

Collect = Callable[..., list[Delta]]


def collect_sync(client: Client, body: Any = BODY, into: list[Delta] | None = None) -> list[Delta]:
    """Read the whole stream; `into` keeps what came before an error."""
    got = [] if into is None else into
    for delta in client.stream(CHAT, body):
        got.append(delta)
    return got


def collect_async(client: Client, body: Any = BODY, into: list[Delta] | None = None) -> list[Delta]:
    got = [] if into is None else into

    async def read() -> None:
        async for delta in client.astream(CHAT, body):
            got.append(delta)

    asyncio.run(read())
    return got


@pytest.fixture(params=[collect_sync, collect_async], ids=["sync", "async"])
def collect(request: pytest.FixtureRequest) -> Collect:
    return request.param


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with running() as playing:
        yield playing


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


# What goes well.


def test_a_good_stream(server: FaultServer, collect: Collect) -> None:
    server.plays = [stream("Hel", "lo")]
    deltas = collect(Client(Endpoint(server.url, api_key=KEY)))
    assert text(deltas) == "Hello"
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    assert [delta.usage for delta in deltas if delta.usage] == [USAGE]
    (request,) = server.requests
    assert (request.method, request.path, request.body) == ("POST", CHAT, BODY)
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent(server: FaultServer, collect: Collect) -> None:
    server.plays = [stream("a")]
    collect(Client(Endpoint(server.url)))
    assert "authorization" not in server.requests[0].headers


def test_a_finish_reason_and_the_end_of_the_stream_are_enough(server: FaultServer, collect: Collect) -> None:
    server.plays = [stream("a", done=False)]
    assert text(collect(Client(Endpoint(server.url)))) == "a"


def test_what_follows_the_end_mark_is_not_waited_for(server: FaultServer, collect: Collect) -> None:
    def play(connection: Any) -> None:
        stream("a")(connection)
        connection.wait_closed()

    server.plays = [play]
    assert text(collect(Client(Endpoint(server.url)))) == "a"
    assert server.closed.wait(10)


@pytest.mark.parametrize(
    "said", ["a\u2028b\u2029c\u0085d", "汉字 🙂 ñ", "\r\n\t\x0b\x0c\x1c", '"data: [DONE]"', "\x00"]
)
def test_text_of_every_kind_arrives_whole(server: FaultServer, collect: Collect, said: str) -> None:
    server.plays = [stream(said, "end")]
    assert text(collect(Client(Endpoint(server.url)))) == said + "end"


def test_characters_split_between_packets(server: FaultServer, collect: Collect) -> None:
    whole = 'data: {"choices":[{"delta":{"content":"é🙂"},"finish_reason":"stop"}]}\r\n\r\n'.encode()

    def play(connection: Any) -> None:
        connection.head()
        for byte in whole:
            connection.send(bytes([byte]))

    server.plays = [play]
    assert text(collect(Client(Endpoint(server.url)))) == "é🙂"


@pytest.mark.parametrize(
    "noise", [": comment\n\n", "event: ping\n\n", "id: 7\n\n", "retry: 10\n\n", "\n\n", "event: ping\ndata\n\n"]
)
def test_events_without_data_say_nothing(server: FaultServer, collect: Collect, noise: str) -> None:
    good = 'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    server.plays = [raw(noise, good, noise, "data: [DONE]\n\n")]
    assert text(collect(Client(Endpoint(server.url)))) == "a"


def test_the_environments_proxies_are_not_used(
    server: FaultServer, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, unused_url())
    server.plays = [stream("a")]
    assert text(collect(Client(Endpoint(server.url)))) == "a"


def test_one_client_serves_many_threads_and_loops(server: FaultServer) -> None:
    server.plays = [stream("a", "b")]
    client = Client(Endpoint(server.url))

    async def many() -> list[list[Delta]]:
        async def one() -> list[Delta]:
            return [delta async for delta in client.astream(CHAT, BODY)]

        blocking = [asyncio.to_thread(collect_sync, client) for _ in range(5)]
        return await asyncio.gather(*blocking, *(one() for _ in range(5)))

    assert [text(deltas) for deltas in asyncio.run(many())] == ["ab"] * 10


# What goes wrong: the play, the error, the text that came before it.

FAULTS: dict[str, tuple[Play, type[EngineError], str]] = {
    "reset at once": (broken(), EngineDiedError, ""),
    "reset mid-stream": (broken("Hel", "lo"), EngineDiedError, "Hello"),
    "cut mid-stream": (cut("Hel"), EngineDiedError, "Hel"),
    "closed at once": (lambda connection: None, EngineDiedError, ""),
    "EOF without finish_reason": (stream("Hel", finish=None, done=False), EngineDiedError, "Hel"),
    "[DONE] without finish_reason": (stream("Hel", finish=None), EngineDiedError, "Hel"),
    "only [DONE]": (events("[DONE]"), EngineDiedError, ""),
    "empty 200 body": (raw(), EngineDiedError, ""),
    "only comments": (raw(": ping\n\n"), EngineDiedError, ""),
    "event that is no JSON": (events(chunk("Hel"), "{oops"), EngineDiedError, "Hel"),
    "event that is a list": (events(chunk("Hel"), [1]), EngineDiedError, "Hel"),
    "event of deep nesting": (events(chunk("Hel"), "[" * 100_000), EngineDiedError, "Hel"),
    "event of another protocol": (events(chunk("Hel"), {"choices": [5]}), EngineFailedError, "Hel"),
    "event that is an error": (
        events(chunk("Hel"), {"error": {"code": 500, "message": "slot died"}}), EngineFailedError, "Hel",
    ),
    "event that says busy": (events({"error": {"code": 503, "message": "loading"}}), EngineBusyError, ""),
    "overflow inside the stream": (
        events({"error": {"code": 400, "type": "exceed_context_size_error", "message": "m"}}), PromptTooLongError, "",
    ),
    "HTML with 200": (answer(200, "<html>Welcome</html>", "text/html"), RequestRejectedError, ""),
    "JSON with 200": (answer(200, {"choices": []}), RequestRejectedError, ""),
    "nothing with 204": (answer(204, ""), RequestRejectedError, ""),
    "redirect": (answer(302, ""), RequestRejectedError, ""),
    "HTML with 404": (answer(404, "<html>Not here</html>", "text/html"), RequestRejectedError, ""),
    "HTML with 502": (answer(502, "<html>Bad gateway</html>", "text/html"), EngineFailedError, ""),
    "garbage with 500": (answer(500, b"\xff\xfe\x00{", "application/json"), EngineFailedError, ""),
    "deep nesting with 400": (answer(400, "[" * 100_000), RequestRejectedError, ""),
    "400": (answer(400, {"error": {"message": "no"}}), RequestRejectedError, ""),
    "401": (answer(401, {"error": {"message": f"{KEY} is not a valid key"}}), AuthenticationError, ""),
    "403": (answer(403, {"error": {"message": "no"}}), AuthenticationError, ""),
    "404": (answer(404, {"error": {"message": "no such model"}}), RequestRejectedError, ""),
    "429": (answer(429, {"error": {"message": "slower"}}), EngineBusyError, ""),
    "500": (answer(500, {"error": {"message": "oops"}}), EngineFailedError, ""),
    "503": (answer(503, {"error": {"message": "loading model", "code": 503}}), EngineBusyError, ""),
    "no HTTP": (lambda connection: connection.send("SSH-2.0-OpenSSH\r\n"), EngineDiedError, ""),
    "context overflow": (
        answer(400, {"error": {"type": "exceed_context_size_error", "message": "m", "n_prompt_tokens": 9, "n_ctx": 4}}),
        PromptTooLongError, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(server: FaultServer, collect: Collect, fault: str) -> None:
    play, expected, before = FAULTS[fault]
    server.plays = [play]
    got: list[Delta] = []
    with pytest.raises(EngineError) as caught:
        collect(Client(Endpoint(server.url, api_key=KEY)), into=got)
    error = caught.value
    assert type(error) is expected
    assert text(got) == before
    if isinstance(error, EngineDiedError):
        assert error.partial == before
    assert error.is_retryable is expected.is_retryable
    assert pickle.loads(pickle.dumps(error)).message == error.message
    assert len(server.requests) == 1


def test_an_overflow_says_by_how_much(server: FaultServer, collect: Collect) -> None:
    server.plays = [FAULTS["context overflow"][0]]
    with pytest.raises(PromptTooLongError) as caught:
        collect(Client(Endpoint(server.url)))
    assert (caught.value.prompt_tokens, caught.value.context_length) == (9, 4)


def test_nothing_listens(collect: Collect) -> None:
    url = unused_url()
    with pytest.raises(NotConnectedError) as caught:
        collect(Client(Endpoint(url, api_key=KEY)))
    assert url in caught.value.message
    assert caught.value.is_retryable


@pytest.mark.parametrize(
    "url", ["http://", "ftp://127.0.0.1", "127.0.0.1:1", "http://127.0.0.1:port", "", "http://a b"]
)
def test_urls_that_cannot_be_called(collect: Collect, url: str) -> None:
    with pytest.raises(EngineError) as caught:
        collect(Client(Endpoint(url)))
    assert type(caught.value) in (RequestRejectedError, NotConnectedError)


@pytest.mark.parametrize(
    "play", [silence(), silence("Hel"), pings(), pings("Hel")], ids=["before", "in", "pings", "pings in"]
)
def test_a_slow_server_is_not_waited_for(server: FaultServer, collect: Collect, play: Play) -> None:
    server.plays = [play]
    with pytest.raises(EngineTimeoutError, match=r"within 0\.2 seconds") as caught:
        collect(Client(Endpoint(server.url), timeout=0.2))
    assert caught.value.is_retryable


def test_a_timeout_that_no_socket_can_wait_for(server: FaultServer, collect: Collect) -> None:
    server.plays = [stream("a")]
    assert text(collect(Client(Endpoint(server.url), timeout=1e300))) == "a"


@pytest.mark.parametrize("content", ["\ud800", "a\udfffb"])
def test_text_that_is_not_unicode(server: FaultServer, collect: Collect, content: str) -> None:
    with pytest.raises(InvalidInputError, match="surrogate"):
        collect(Client(Endpoint(server.url)), body={"messages": [{"role": "user", "content": content}]})
    assert server.requests == []


# Greetings.


def test_a_greeting_goes_before_the_request_on_the_same_terms(server: FaultServer, collect: Collect) -> None:
    server.plays = [answer(200, {"status": "ok"}), stream("a")]
    assert text(collect(Client(Endpoint(server.url, api_key=KEY, greeting="/health")))) == "a"
    assert [(request.method, request.path) for request in server.requests] == [("GET", "/health"), ("POST", CHAT)]


def test_a_server_that_dies_during_the_greeting_has_not_begun(server: FaultServer, collect: Collect) -> None:
    server.plays = [broken()]
    with pytest.raises(NotConnectedError):
        collect(Client(Endpoint(server.url, greeting="/health")))
    assert server.posts == []


# Stopping.


def test_closing_the_iterator_closes_the_connection(server: FaultServer) -> None:
    server.plays = [silence("Hel")]
    deltas = Client(Endpoint(server.url)).stream(CHAT, BODY)
    assert next(deltas).text == "Hel"
    assert not server.closed.is_set()
    deltas.close()  # type: ignore[attr-defined]
    assert server.closed.wait(10)


def test_dropping_the_iterator_closes_the_connection(server: FaultServer) -> None:
    server.plays = [silence("Hel")]
    for delta in Client(Endpoint(server.url)).stream(CHAT, BODY):
        assert delta.text == "Hel"
        break
    gc.collect()
    assert server.closed.wait(10)


async def test_closing_the_async_iterator_closes_the_connection(server: FaultServer) -> None:
    server.plays = [silence("Hel")]
    deltas: AsyncIterator[Delta] = Client(Endpoint(server.url)).astream(CHAT, BODY)
    async with contextlib.aclosing(deltas):  # type: ignore[type-var]
        assert (await anext(deltas)).text == "Hel"
        assert not server.closed.is_set()
    assert await asyncio.to_thread(server.closed.wait, 10)


@pytest.mark.parametrize("play", [silence("Hel"), silence()], ids=["in the stream", "before it"])
async def test_cancelling_a_task_closes_the_connection(server: FaultServer, play: Play) -> None:
    server.plays = [play]

    async def read() -> None:
        async for _ in Client(Endpoint(server.url)).astream(CHAT, BODY):
            pass

    task = asyncio.create_task(read())
    assert await asyncio.to_thread(server.arrived.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.closed.wait, 10)


# The key.


@pytest.mark.parametrize("fault", [*FAULTS, "good"])
def test_the_key_is_in_the_header_and_nowhere_else(
    server: FaultServer, collect: Collect, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server.plays = [FAULTS[fault][0] if fault in FAULTS else stream("a")]
    client = Client(Endpoint(server.url, api_key=KEY))
    shown = ""
    try:
        collect(client)
    except EngineError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + repr(error.args)
    assert bool(shown) == (fault != "good")
    assert KEY not in shown
    assert KEY not in caplog.text
    assert KEY not in repr(client.endpoint) + str(client.endpoint) + repr(client)
    (request,) = server.requests
    assert request.headers.pop("authorization") == f"Bearer {KEY}"
    assert KEY not in f"{request.path} {request.headers} {request.raw_body!r}"


@pytest.mark.parametrize("key", [KEY + "\n", KEY + "\r\nX-Evil: 1", "ключ-" + KEY, KEY + "\x00", KEY + "\u2028"])
def test_a_key_that_no_header_can_carry(server: FaultServer, collect: Collect, key: str) -> None:
    with pytest.raises(InvalidInputError, match="key") as caught:
        collect(Client(Endpoint(server.url, api_key=key)))
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert server.requests == []


# Small requests, and looking at a server.


def test_a_small_request(server: FaultServer) -> None:
    server.plays = [answer(200, {"n_ctx": 5})]
    assert Client(Endpoint(server.url, api_key=KEY)).call("POST", "/props", {"a": 1}) == {"n_ctx": 5}
    assert server.requests[0].body == {"a": 1}
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("play", "expected"),
    [
        (answer(200, "<html>Welcome</html>", "text/html"), RequestRejectedError),
        (answer(200, ""), RequestRejectedError),
        (answer(200, "[" * 100_000), RequestRejectedError),
        (answer(302, ""), RequestRejectedError),
        (answer(401, {"error": {"message": f"unknown key {KEY}"}}), AuthenticationError),
        (answer(500, "oops", "text/plain"), EngineFailedError),
        (answer(503, {"error": {"message": "loading"}}), EngineBusyError),
        (broken(), EngineDiedError),
        (cut("a"), EngineDiedError),
        (silence(), EngineTimeoutError),
    ],
)
def test_small_requests_that_fail(server: FaultServer, play: Play, expected: type[QlangchainError]) -> None:
    server.plays = [play]
    with pytest.raises(EngineError) as caught:
        Client(Endpoint(server.url, api_key=KEY), timeout=0.2).call("GET", "/props")
    assert type(caught.value) is expected
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_connecting_takes_the_url_with_or_without_v1(server: FaultServer, path: str) -> None:
    endpoint = remote.connect(server.url + path, api_key=f" {KEY}\n")
    assert (endpoint.base_url, endpoint.model, endpoint.api_key) == (server.url, "played", KEY)
    assert endpoint.capabilities == remote.STANDARD
    assert server.requests[0].path == "/v1/models"
    assert KEY not in repr(endpoint)


def test_connecting_below_a_path(server: FaultServer) -> None:
    assert remote.connect(server.url + "/team/v1").base_url == server.url + "/team"
    assert server.requests[0].path == "/team/v1/models"


def test_connecting_takes_the_key_from_the_environment(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_ENDPOINT_KEY", KEY)
    assert remote.connect(server.url).api_key == KEY
    assert remote.connect(server.url, api_key="another").api_key == "another"


def test_connecting_finds_llama_cpp(server: FaultServer) -> None:
    server.models = {"data": [{"id": "m", "owned_by": "llamacpp"}]}
    server.plays = [answer(200, {"build_info": "b1234"})]
    endpoint = remote.connect(server.url)
    assert endpoint.runtime_version == "b1234"
    assert "top_k" in endpoint.capabilities.sampling


@pytest.mark.parametrize("props", [answer(501, {}), answer(200, [1]), answer(200, "<html>", "text/html")])
def test_a_llama_cpp_that_does_not_say_its_version(server: FaultServer, props: Play) -> None:
    server.models = {"data": [{"id": "m", "owned_by": "llamacpp"}]}
    server.plays = [props]
    assert remote.connect(server.url).runtime_version == ""


def test_connecting_picks_the_model_that_is_served(server: FaultServer) -> None:
    server.models = {"data": [{"id": "first"}, {"id": "second"}, "odd", {"name": "no id"}]}
    assert remote.connect(server.url).model == "first"
    assert remote.connect(server.url, model="second").model == "second"
    with pytest.raises(QlangchainError, match="does not serve 'third'") as caught:
        remote.connect(server.url, model="third")
    assert "first, second" in caught.value.hint


@pytest.mark.parametrize("models", [[], {}, {"data": None}, {"data": {"id": "m"}}, '"models"', 5])
def test_a_server_that_lists_no_models(server: FaultServer, models: Any) -> None:
    server.models = models
    with pytest.raises(RequestRejectedError, match="list of models"):
        remote.connect(server.url)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a", "http://", "http:///v1", "http://[::1", "file:///etc/passwd", None, 8000]
)
def test_endpoints_that_are_no_urls(url: Any) -> None:
    with pytest.raises(InvalidInputError, match="endpoint="):
        remote.connect(url)


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    with pytest.raises(InvalidInputError) as caught:
        remote.connect(f"http://user:{KEY}@127.0.0.1:1")
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert "api_key=" in str(caught.value)
