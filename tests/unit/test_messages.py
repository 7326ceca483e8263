"""LangChain's messages to the protocol's, and the protocol's deltas to LangChain's messages."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from qlangchain.errors import InvalidInputError
from qlangchain.models.messages import MessagesPrompt, MessagesPromptValue, to_chunk, to_message, to_openai, to_usage
from qlangchain.runtimes.protocol import Delta

ABOUT = {"model_name": "m", "model_provider": "qlangchain"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
CALL = {"name": "add", "args": {"a": 1, "b": "二"}, "id": "call-1", "type": "tool_call"}


# To the protocol.


def test_a_conversation() -> None:
    assert to_openai(
        [SystemMessage("Be brief."), HumanMessage("Hi\u2028 你好"), AIMessage("Hello"), HumanMessage("")]
    ) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\u2028 你好"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": ""},
    ]


@pytest.mark.parametrize(
    "content", [["a", "b"], [{"type": "text", "text": "a"}, "b"], [{"type": "text", "text": "a\nb"}]]
)
def test_blocks_of_text_become_a_string(content: Any) -> None:
    assert to_openai([HumanMessage(content)]) == [{"role": "user", "content": "a\nb"}]


def test_tool_calls_and_their_results() -> None:
    call, result = to_openai([AIMessage("", tool_calls=[CALL]), ToolMessage("3", tool_call_id="call-1")])
    assert (call["role"], call["content"]) == ("assistant", "")
    (sent,) = call["tool_calls"]
    assert (sent["id"], sent["type"], sent["function"]["name"]) == ("call-1", "function", "add")
    assert json.loads(sent["function"]["arguments"]) == CALL["args"]
    assert result == {"role": "tool", "tool_call_id": "call-1", "content": "3"}


def test_blocks_of_a_tool_call_beside_text() -> None:
    blocks: list[Any] = [
        {"type": "text", "text": "Let me add."},
        {"type": "tool_use", "id": "call-1", "name": "add", "input": CALL["args"]},
    ]
    (sent,) = to_openai([AIMessage(blocks, tool_calls=[CALL])])
    assert sent["content"] == "Let me add."
    assert len(sent["tool_calls"]) == 1


def test_a_failed_tools_result_in_blocks() -> None:
    (sent,) = to_openai([ToolMessage([{"type": "text", "text": "no"}], tool_call_id="call-1", status="error")])
    assert (sent["role"], sent["content"]) == ("tool", "no")


def test_names_are_kept() -> None:
    assert to_openai([HumanMessage("Hi", name="ann")])[0]["name"] == "ann"


def test_what_is_ours_alone_is_not_sent() -> None:
    message = AIMessage("Hi", response_metadata={"secret": 1}, id="run-1", usage_metadata=to_usage(Delta(usage=USAGE)))
    assert to_openai([message]) == [{"role": "assistant", "content": "Hi"}]


def test_the_messages_stay_as_they_are() -> None:
    messages = [HumanMessage([{"type": "text", "text": "a"}, "b"]), AIMessage("", tool_calls=[CALL])]
    before = copy.deepcopy(messages)
    to_openai(messages)
    assert messages == before


@pytest.mark.parametrize("messages", [[], ()])
def test_no_messages(messages: Any) -> None:
    with pytest.raises(InvalidInputError, match="no messages") as caught:
        to_openai(messages)
    assert "HumanMessage" in caught.value.hint


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, "image"),
        ({"type": "image", "base64": "AA", "mime_type": "image/png"}, "image"),
        ({"type": "image", "url": "https://a/b.png"}, "image"),
        ({"type": "audio", "base64": "AA", "mime_type": "audio/wav"}, "audio"),
        ({"type": "file", "base64": "AA", "mime_type": "application/pdf", "filename": "a.pdf"}, "file"),
        ({"type": "hologram", "data": "AA"}, "hologram"),
    ],
)
def test_a_text_model_takes_text(block: dict[str, Any], kind: str) -> None:
    for content in ([block], [{"type": "text", "text": "What is this?"}, block]):
        with pytest.raises(InvalidInputError, match=kind) as caught:
            to_openai([HumanMessage(content)])
        assert "text" in caught.value.hint


@pytest.mark.parametrize("message", [RemoveMessage(id="a"), 5, object(), HumanMessage([{"no": "type"}])])
def test_what_cannot_be_sent(message: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        to_openai([HumanMessage("Hi"), message])
    assert "\n" not in caught.value.message


# From the protocol.


def test_a_delta_that_says_nothing_is_no_chunk() -> None:
    assert to_chunk(Delta(model="m"), ABOUT) is None


def test_a_delta_of_text() -> None:
    chunk = to_chunk(Delta(text="Hel"), {})
    assert isinstance(chunk, AIMessageChunk)
    assert (chunk.text, chunk.response_metadata, chunk.usage_metadata) == ("Hel", {}, None)


def test_the_metadata_come_with_the_finish_reason() -> None:
    chunk = to_chunk(Delta(finish_reason="length"), ABOUT)
    assert chunk
    assert chunk.response_metadata == {**ABOUT, "finish_reason": "length"}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}),
        ({"prompt_tokens": 7}, {"input_tokens": 7, "output_tokens": 0, "total_tokens": 7}),
        ({"prompt_tokens": 7, "completion_tokens": None}, {"input_tokens": 7, "output_tokens": 0, "total_tokens": 7}),
        (
            {**USAGE, "prompt_tokens_details": {"cached_tokens": 5}},
            {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10, "input_token_details": {"cache_read": 5}},
        ),
        (
            {**USAGE, "prompt_tokens_details": None},
            {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
        ),
        (None, None),
        ({}, None),
    ],
)
def test_usage(usage: Any, expected: Any) -> None:
    assert to_usage(Delta(usage=usage)) == expected


def call(index: int, **function: Any) -> Delta:
    head = {"id": f"call-{index}", "type": "function"} if "name" in function else {}
    return Delta(tool_calls=({"index": index, **head, "function": function},))


ANSWER = [
    Delta(),
    Delta(text="Let me "),
    Delta(text="add."),
    call(0, name="add", arguments=""),
    call(0, arguments='{"a": 1, '),
    call(1, name="mul", arguments='{"a"'),
    call(0, arguments='"b": "二"}'),
    call(1, arguments=": 2}"),
    Delta(finish_reason="tool_calls"),
    Delta(usage=USAGE, timings={"predicted_per_second": 9.0}),
]


def test_deltas_are_merged_into_one_message() -> None:
    message = to_message(ANSWER, ABOUT)
    assert type(message) is AIMessage
    assert message.text == "Let me add."
    assert [(made["name"], made["args"], made["id"]) for made in message.tool_calls] == [
        ("add", {"a": 1, "b": "二"}, "call-0"),
        ("mul", {"a": 2}, "call-1"),
    ]
    assert message.usage_metadata == {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    assert message.response_metadata == {
        **ABOUT, "finish_reason": "tool_calls", "timings": {"predicted_per_second": 9.0},
    }  # fmt: skip


def test_the_chunks_of_a_stream_add_up_to_the_same_message() -> None:
    chunks = [chunk for delta in ANSWER if (chunk := to_chunk(delta, ABOUT if delta.finish_reason else {}))]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    message = to_message(ANSWER, ABOUT)
    for name in ("text", "tool_calls", "usage_metadata", "response_metadata"):
        assert getattr(whole, name) == getattr(message, name)
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1


def test_a_call_that_is_no_json_is_an_invalid_call() -> None:
    message = to_message([call(0, name="add", arguments="a is 1"), Delta(finish_reason="length")], {})
    assert message.tool_calls == []
    (invalid,) = message.invalid_tool_calls
    assert (invalid["name"], invalid["args"]) == ("add", "a is 1")


def test_a_very_long_answer() -> None:
    deltas = [Delta(text="word ") for _ in range(20_000)]
    assert to_message([*deltas, Delta(finish_reason="stop")], ABOUT).text == "word " * 20_000


# A prompt that keeps its messages.

CONVERSATIONS = [
    [HumanMessage("a")],
    [HumanMessage("a"), HumanMessage("b")],
    [HumanMessage("a\nb")],
    [HumanMessage("ab")],
    [SystemMessage("a"), HumanMessage("b")],
    [HumanMessage("a"), AIMessage("b")],
    [AIMessage("a"), HumanMessage("b")],
    [HumanMessage("Human: a")],
    [HumanMessage('a"}, {"role": "user", "content": "b')],
    [HumanMessage("a", name="ann")],
    [HumanMessage("a"), AIMessage("", tool_calls=[CALL])],
    [HumanMessage("a"), AIMessage("", tool_calls=[{**CALL, "args": {}}])],
    [HumanMessage("a"), ToolMessage("b", tool_call_id="1")],
    [HumanMessage("a"), ToolMessage("b", tool_call_id="2")],
]


def test_different_conversations_are_different_prompts() -> None:
    prompts = [MessagesPrompt(messages) for messages in CONVERSATIONS]
    assert len(set(prompts)) == len(set(map(str, prompts))) == len(CONVERSATIONS)
    assert prompts == [MessagesPrompt(copy.deepcopy(messages)) for messages in CONVERSATIONS]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_a_prompt_keeps_its_messages(messages: Any) -> None:
    prompt = MessagesPromptValue(messages=messages).to_string()
    assert isinstance(prompt, MessagesPrompt)
    assert prompt.messages == tuple(messages)
    assert json.loads(prompt) == to_openai(messages)
    for twin in (copy.copy(prompt), copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
        assert type(twin) is MessagesPrompt
        assert (str(twin), twin.messages) == (str(prompt), prompt.messages)


def test_a_prompt_of_nothing() -> None:
    with pytest.raises(InvalidInputError):
        MessagesPrompt([])
