"""The OpenAI protocol as data: bodies of requests, events of streams, refusals."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain.errors import (
    AuthenticationError,
    EngineBusyError,
    EngineError,
    EngineFailedError,
    InvalidInputError,
    PromptTooLongError,
    QlangchainError,
    RequestRejectedError,
    UnsupportedRequestError,
)
from qlangchain.runtimes import protocol
from qlangchain.runtimes.protocol import Delta, Transcript
from qlangchain.types import Capabilities

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["choices", "delta", "text", "content", "usage", "error", "tool_calls", "finish_reason", "timings", "message"]
)
EVENTS = st.recursive(JSON, lambda inner: st.dictionaries(KEYS, inner | st.lists(inner, max_size=2), max_size=4))


# Requests.


def test_a_body_has_what_was_chosen_and_nothing_else() -> None:
    sampling = {"temperature": 0.0, "top_p": None, "stop": [], "seed": 0, "max_tokens": 5}
    assert protocol.body("m", {"prompt": "p"}, sampling, Capabilities(usage_in_stream=False)) == {
        "model": "m", "prompt": "p", "temperature": 0.0, "seed": 0, "max_tokens": 5, "stream": True,
    }  # fmt: skip


def test_usage_is_asked_of_servers_that_count() -> None:
    assert protocol.body("m", {"messages": []}, {}, Capabilities())["stream_options"] == {"include_usage": True}


def test_what_a_server_ignores_is_not_sent() -> None:
    with pytest.raises(UnsupportedRequestError) as caught:
        protocol.body("m", {}, {"top_k": 5, "min_p": 0.1, "temperature": 1, "seed": None}, Capabilities())
    assert isinstance(caught.value, InvalidInputError)
    assert "min_p, top_k" in caught.value.message
    assert "temperature" in caught.value.hint


def test_what_is_none_is_no_request_for_something_unknown() -> None:
    assert "top_k" not in protocol.body("m", {}, {"top_k": None}, Capabilities())


# Events.


@pytest.mark.parametrize(
    ("event", "delta"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": None}}]}, Delta()),
        ({"choices": [{"delta": {"content": "a"}}], "model": "m"}, Delta(text="a", model="m")),
        ({"choices": [{"text": "a", "finish_reason": None}]}, Delta(text="a")),
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, Delta(finish_reason="length")),
        ({"choices": [{"delta": None, "finish_reason": "stop"}]}, Delta(finish_reason="stop")),
        ({"choices": [], "usage": {"prompt_tokens": 1}}, Delta(usage={"prompt_tokens": 1})),
        ({"choices": [{"delta": {"content": "a"}}], "usage": None, "error": None}, Delta(text="a")),
        ({"choices": [], "timings": {"predicted_per_second": 9.5}}, Delta(timings={"predicted_per_second": 9.5})),
        ({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}, Delta(tool_calls=({"index": 0},))),
        ({"choices": [{"delta": {"content": "a\u2028b\x00\U0001f600"}}]}, Delta(text="a\u2028b\x00\U0001f600")),
        ({"object": "ping"}, Delta()),
    ],
)
def test_events(event: dict[str, Any], delta: Delta) -> None:
    assert protocol.parse(event) == delta


@pytest.mark.parametrize(
    "event",
    [
        {"choices": {"0": {}}},
        {"choices": "text"},
        {"choices": [None]},
        {"choices": [["delta"]]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": {"content": [{"type": "text", "text": "a"}]}}]},
        {"choices": [{"delta": {"content": 5}}]},
        {"choices": [{"delta": {"tool_calls": ["call"]}}]},
        {"choices": [{"delta": {"tool_calls": 1}}]},
        {"choices": [], "usage": [1, 2]},
        {"choices": [], "timings": "fast"},
    ],
)
def test_events_of_another_protocol(event: dict[str, Any]) -> None:
    with pytest.raises(EngineFailedError, match="not what the OpenAI protocol says"):
        protocol.parse(event)


@given(st.dictionaries(KEYS, EVENTS, max_size=5))
def test_any_event_is_a_delta_or_an_error_of_ours(event: dict[str, Any]) -> None:
    with contextlib.suppress(QlangchainError):
        assert isinstance(protocol.parse(event).text, str)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"error": {"code": 500, "message": "slot died", "type": "server_error"}}, EngineFailedError),
        ({"error": {"code": 400, "message": "bad grammar"}}, RequestRejectedError),
        ({"error": {"code": 503, "message": "loading"}}, EngineBusyError),
        ({"error": "just words"}, EngineFailedError),
        ({"error": {}}, EngineFailedError),
        ({"error": {"code": "context_length_exceeded", "message": "too long"}}, PromptTooLongError),
    ],
)
def test_errors_inside_a_stream(event: dict[str, Any], expected: type[EngineError]) -> None:
    with pytest.raises(EngineError) as caught:
        protocol.parse(event)
    assert type(caught.value) is expected


# Refusals.


@pytest.mark.parametrize(
    ("status", "expected", "retryable"),
    [
        (400, RequestRejectedError, False),
        (401, AuthenticationError, False),
        (403, AuthenticationError, False),
        (404, RequestRejectedError, False),
        (422, RequestRejectedError, False),
        (429, EngineBusyError, True),
        (500, EngineFailedError, True),
        (502, EngineFailedError, True),
        (503, EngineBusyError, True),
    ],
)
@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"message": "because of the reason"}},
        {"error": "because of the reason"},
        {"message": "because of the reason"},
        {"detail": "because of the reason"},
        "because of the reason",
    ],
)
def test_statuses(status: int, expected: type[EngineError], retryable: bool, answer: Any) -> None:
    error = protocol.refusal(status, answer)
    assert type(error) is expected
    assert error.is_retryable is retryable
    assert "because of the reason" in error.message


@pytest.mark.parametrize("answer", ["", None, {}, [], {"error": None}, {"error": {}}])
def test_a_refusal_without_a_reason_says_so_or_shows_what_came(answer: Any) -> None:
    error = protocol.refusal(400, answer)
    assert type(error) is RequestRejectedError
    assert "HTTP 400" in error.message


def test_a_long_refusal_is_cut() -> None:
    assert len(protocol.refusal(500, "x" * 100_000).message) < 2100


@pytest.mark.parametrize(
    ("answer", "asked", "there"),
    [
        (
            {"error": {"code": 400, "type": "exceed_context_size_error", "message": "the request exceeds",
                       "n_prompt_tokens": 9000, "n_ctx": 4096}},
            9000, 4096,
        ),
        ({"error": {"code": "context_length_exceeded", "message": "too long"}}, None, None),
        ({"error": {"message": "This model's maximum context length is 2048 tokens."}}, None, None),
        ({"object": "error", "message": "The maximum context length is 2048 tokens.", "code": 400}, None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 413, 500])
def test_prompts_that_do_not_fit(status: int, answer: Any, asked: int | None, there: int | None) -> None:
    error = protocol.refusal(status, answer)
    assert isinstance(error, PromptTooLongError)
    assert not error.is_retryable
    assert (error.prompt_tokens, error.context_length) == (asked, there)
    assert (str(asked) in error.message) == (asked is not None)


@given(st.integers(400, 599), EVENTS)
def test_any_answer_is_a_refusal(status: int, answer: Any) -> None:
    error = protocol.refusal(status, answer)
    assert isinstance(error, EngineError)
    assert error.message


# Transcripts.


def test_a_transcript_keeps_the_text_and_the_finish_reason() -> None:
    transcript = Transcript()
    for delta in (Delta(), Delta(text="ab"), Delta(finish_reason="stop"), Delta(text="c"), Delta(usage={"a": 1})):
        transcript.add(delta)
    assert (transcript.partial, transcript.finish_reason, transcript.events) == ("abc", "stop", 5)
