"""Calls that stand in a reply's text: found, held back from the text, and asked for again where they are mangled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlangchain.errors import MalformedReplyError
from qlangchain.models.replies import AutoReader, Retry
from qlangchain.runtimes import protocol
from qlangchain.runtimes.protocol import Delta

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}
ONE = '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'


def read(pieces: list[str], *, finish: str = "stop", **more: Any) -> list[Delta]:
    reader = AutoReader(tools=[TOOL], **more)
    deltas = [delta for piece in pieces for delta in reader.feed(Delta(text=piece))]
    deltas += reader.feed(Delta(finish_reason=finish))
    return [*deltas, *reader.end()]


def said(deltas: list[Delta]) -> tuple[str, list[tuple[str, Any]], str | None]:
    calls = [call["function"] for delta in deltas for call in delta.tool_calls]
    finish = next(delta.finish_reason for delta in deltas if delta.finish_reason)
    return "".join(delta.text for delta in deltas), [(c["name"], json.loads(c["arguments"])) for c in calls], finish


@given(st.data())
def test_a_call_in_the_text_is_a_call_however_it_is_cut(data: st.DataObject) -> None:
    text = "I shall add.\n" + ONE + "\n" + ONE
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    deltas = read(pieces)
    assert said(deltas) == ("I shall add.", [("add", {"a": 3})] * 2, "tool_calls")
    assert len({call["id"] for delta in deltas for call in delta.tool_calls}) == 2
    assert len(said(read(pieces, parallel=False))[1]) == 1


@pytest.mark.parametrize("text", ["a < b", "ends in <", "ends in <tool", " \n x \n", "[TOOL", "a <tool_box> b"])
def test_text_that_only_looks_like_a_call_is_text(text: str) -> None:
    assert said(read(list(text))) == (text, [], "stop")
    assert said(read([text])) == (text, [], "stop")


@pytest.mark.parametrize(
    "text", ["<tool_call>{", ONE.replace("3", '"x"'), ONE.replace("add", "sub"), "[TOOL_CALLS] add", "<tool_call>[]"]
)
def test_a_mangled_call_is_asked_for_again(text: str) -> None:
    with pytest.raises(Retry):
        read([text])


def test_a_reply_without_an_answer_says_why() -> None:
    with pytest.raises(MalformedReplyError, match="neither text nor"):
        read([" \n"])
    with pytest.raises(MalformedReplyError, match="tokens were spent") as caught:
        read([], finish="length")
    assert "max_tokens" in caught.value.hint


def test_a_reply_that_the_server_cannot_read_is_a_malformed_one() -> None:
    said = "The model produced output that does not match the expected peg-native format"
    error = protocol.refusal(500, {"error": {"code": 500, "message": said, "type": "server_error"}})
    assert isinstance(error, MalformedReplyError)
    assert not error.is_retryable
