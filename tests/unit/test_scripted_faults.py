"""The faults that the scripted server plays, as the models meet them."""

from __future__ import annotations

import threading

import httpx
import pytest
from unit.asking import http, user

from qlangchain import get_llm
from qlangchain.errors import (
    AuthenticationError,
    EngineBusyError,
    EngineDiedError,
    EngineFailedError,
    EngineTimeoutError,
    InvalidInputError,
    NotConnectedError,
    RequestRejectedError,
)
from qlangchain.runtimes import scripted_tokens as tokens
from qlangchain.runtimes.client import Client
from qlangchain.runtimes.protocol import CHAT
from qlangchain.runtimes.scripted import Reply, Scripted


def call(script: Scripted, **arguments: object) -> str:
    llm = get_llm(endpoint=script.url, api_key=script.api_key, max_retries=0, **arguments)
    return llm.invoke("hi")


@pytest.mark.parametrize("whole", ["one two three", ""])
@pytest.mark.parametrize("after", [0, 1, 2, 50])
def test_a_connection_dies_after_so_many_pieces(whole: str, after: int) -> None:
    with Scripted([Reply(whole, die_after=after), "alive"]) as script:
        with pytest.raises(EngineDiedError) as caught:
            call(script)
        assert caught.value.partial == "".join(tokens.pieces(whole)[:after])
        assert call(script) == "alive"


def test_a_connection_dies_before_an_answer_that_is_not_streamed() -> None:
    with Scripted([Reply("one two", die_after=1)]) as script, http(script) as client, pytest.raises(httpx.HTTPError):
        client.post(CHAT, json=user("hi"))


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (Reply(status=503, error="Loading model"), EngineBusyError, "Loading model"),
        (Reply(status=429), EngineBusyError, "scripted failure"),
        (Reply(status=500, error={"message": "CUDA out of memory"}), EngineFailedError, "CUDA out of memory"),
        (Reply(status=401, error="no"), AuthenticationError, "no"),
        (Reply(status=400, error={"message": "bad grammar", "type": "x"}), RequestRejectedError, "bad grammar"),
        (Reply("one two", error="slot was lost"), EngineFailedError, "slot was lost"),
    ],
)
def test_errors_are_played(reply: Reply, error: type[Exception], message: str) -> None:
    with Scripted([reply, "fine"]) as script:
        with pytest.raises(error, match=message):
            call(script)
        assert call(script) == "fine"


def test_an_error_in_the_stream_comes_after_the_text() -> None:
    with Scripted([Reply("one two", error="slot was lost")]) as script:
        stream = Client(script.endpoint).stream(CHAT, user("hi", stream=True))
        assert [next(stream).text for _ in range(3)] == ["", "one", " two"]
        with pytest.raises(EngineFailedError, match="slot was lost"):
            next(stream)


def test_a_busy_server_is_asked_again() -> None:
    with Scripted([Reply(status=503), Reply(status=503), "at last"]) as script:
        assert get_llm(endpoint=script.url, api_key=script.api_key, max_retries=2).invoke("hi") == "at last"
    assert len(script.requests) == 3


@pytest.mark.parametrize("delay", [0.001, 30])
def test_silence_runs_into_the_timeout_or_not(delay: float) -> None:
    with Scripted([Reply("one two", delay=delay)]) as script:
        if delay < 1:
            assert call(script, timeout=20) == "one two"
        else:
            with pytest.raises(EngineTimeoutError):
                call(script, timeout=0.05)


def test_a_stopped_server_cuts_its_streams_and_can_be_started_again() -> None:
    script = Scripted([Reply("one two", delay=60), "alive"])
    with pytest.raises(InvalidInputError, match="not been started"):
        _ = script.url
    with script.start():
        url = script.url
        stream = Client(script.endpoint).stream(CHAT, user("hi", stream=True))
        threading.Timer(0.05, script.stop).start()
        with pytest.raises(EngineDiedError):
            next(stream)
    with pytest.raises(NotConnectedError):
        call(script)
    with script:
        assert script.url == url
        assert call(script) == "alive"
    script.stop()  # stopping what does not run does nothing
