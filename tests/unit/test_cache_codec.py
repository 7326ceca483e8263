"""What is kept of an answer comes back equal, whole or as chunks, or is not kept; nothing else is made of it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk

from qlangchain.models.cache import codec, replay

text = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
jsons = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
objects = st.dictionaries(text, jsons, max_size=3)
counts = st.integers(0, 10**6)
usages = st.none() | st.fixed_dictionaries(
    {"input_tokens": counts, "output_tokens": counts, "total_tokens": counts},
    optional={"input_token_details": st.fixed_dictionaries({"cache_read": counts})},
)
calls = st.lists(st.fixed_dictionaries({"name": text, "args": objects, "id": st.none() | text}), max_size=2)
broken = st.lists(
    st.fixed_dictionaries({"name": text, "args": text, "id": text, "error": st.none() | text}), max_size=2
)
blocks = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": text}), max_size=3)
messages = st.builds(
    AIMessage,
    content=text | blocks,
    additional_kwargs=st.dictionaries(text.filter(lambda name: name != "tool_calls"), jsons, max_size=3),
    response_metadata=objects,
    tool_calls=calls,
    invalid_tool_calls=broken,
    usage_metadata=usages,
    name=st.none() | text,
    id=st.none() | text,
)
generations = st.builds(Generation, text=text, generation_info=st.none() | objects) | st.builds(
    ChatGeneration, message=messages, generation_info=st.none() | objects
)


def round_trip(*given: Generation) -> list[Generation]:
    value = codec.encode(given)
    assert value is not None
    return codec.decode(value)


@given(st.lists(generations, max_size=3))
def test_what_is_kept_comes_back_equal(kept: list[Generation]) -> None:
    assert round_trip(*kept) == kept


def test_a_whole_message_comes_back() -> None:
    message = AIMessage(
        content=[{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "你好"}],
        additional_kwargs={"reasoning_content": "hm", "lc": 1, "type": "constructor", "id": ["os", "system"]},
        response_metadata={"model_name": "demo", "finish_reason": "stop", "logprobs": {"content": [{"logprob": -0.5}]}},
        tool_calls=[{"name": "add", "args": {"a": 1, "b": [2.5, None]}, "id": "call-1"}],
        invalid_tool_calls=[{"name": "add", "args": "{a", "id": "call-2", "error": "no JSON"}],
        usage_metadata={
            "input_tokens": 3,
            "output_tokens": 4,
            "total_tokens": 7,
            "input_token_details": {"cache_read": 1},
        },
        id="from-the-server",
    )
    (found,) = round_trip(ChatGeneration(message=message, generation_info={"a": 1}))
    assert isinstance(found, ChatGeneration)
    assert found.message == message
    assert type(found.message) is AIMessage


def test_lone_surrogates_survive() -> None:
    assert round_trip(Generation(text="\ud800")) == [Generation(text="\ud800")]


def test_what_belongs_to_a_run_is_left_out() -> None:
    usage: Any = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    message = AIMessage("x", id="lc_run--0198-0", usage_metadata=usage)
    hit = message.model_copy(update={"usage_metadata": {**usage, "total_cost": 0}})
    for kept in (message, hit):
        (found,) = round_trip(ChatGeneration(message=kept))
        assert found.message == AIMessage("x", usage_metadata=usage)
    (found,) = round_trip(
        ChatGeneration(message=AIMessage("x").model_copy(update={"usage_metadata": {"total_cost": 0}}))
    )
    assert found.message.usage_metadata is None
    assert message.id == "lc_run--0198-0", "the answer itself is not changed"


class Special(AIMessage):
    """A class of somebody's own."""


@pytest.mark.parametrize(
    "generation",
    [
        Generation(text="x", generation_info={"when": object()}),
        Generation(text="x", generation_info={"raw": b"bytes"}),
        Generation(text="x", generation_info={"pair": (1, 2)}),
        ChatGeneration(message=AIMessage("x", additional_kwargs={1: "integer key"})),
        Generation(text="x", generation_info={"p": float("nan")}),
        Generation(text="x", generation_info={"p": float("inf")}),
        GenerationChunk(text="x"),
        ChatGenerationChunk(message=AIMessageChunk("x")),
        ChatGeneration(message=AIMessageChunk("x")),
        ChatGeneration(message=HumanMessage("x")),
        ChatGeneration(message=Special("x")),
        ChatGeneration(message=AIMessage("x", extra="field")),
    ],
    ids=lambda generation: repr(generation)[:60],
)
def test_what_would_not_come_back_is_not_kept(generation: Generation) -> None:
    assert codec.encode([Generation(text="fine"), generation]) is None


def test_deep_nesting_is_not_kept() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    try:
        assert codec.encode([Generation(text="x", generation_info={"deep": deep})]) is None
    finally:
        while deep:  # taken apart by hand: the interpreter would recurse
            (deep,) = deep


@given(st.binary(max_size=200) | jsons.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_generations_or_undecodable(value: bytes) -> None:
    with contextlib.suppress(codec.UndecodableError):
        assert isinstance(codec.decode(value), list)


@given(st.data())
def test_any_change_of_a_field_is_generations_or_undecodable(data: st.DataObject) -> None:
    whole = json.loads(codec.encode([ChatGeneration(message=AIMessage("x", tool_calls=[], id="1"))]) or b"")
    entry = whole["generations"][0]
    target = data.draw(st.sampled_from([entry, entry["message"], whole]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(jsons | calls | broken | usages)
    try:
        found = codec.decode(json.dumps(whole).encode())
    except codec.UndecodableError:
        return
    for generation in found:
        assert type(generation) in (Generation, ChatGeneration)
        if isinstance(generation, ChatGeneration):
            assert type(generation.message) is AIMessage


@pytest.mark.parametrize(
    "value",
    [b"", b"null", b"[" * 100_000, b'{"version": 1}', b'{"version": 2, "generations": []}', b"9" * 5000, b"\xff"],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_answer_is_undecodable(value: bytes) -> None:
    with pytest.raises(codec.UndecodableError):
        codec.decode(value)


def test_constructors_in_the_text_stay_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    planted = {
        "a": {"lc": 1, "type": "secret", "id": ["A_SECRET"]},
        "b": {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "HumanMessage"], "kwargs": {}},
    }
    (found,) = round_trip(Generation(text="x", generation_info=planted))
    assert found.generation_info == planted


# As a stream says it again.


@given(messages)
def test_any_message_survives_being_split_and_joined(message: AIMessage) -> None:
    generation = ChatGeneration(message=message)
    assert replay.splittable([generation]) is not bool(message.invalid_tool_calls)
    generation.message = message = message.model_copy(update={"invalid_tool_calls": []})
    chunks = list(replay.split(generation))
    joined = replay.join(chunks)
    assert isinstance(joined, ChatGeneration)
    found = joined.message
    assert isinstance(found, AIMessage)
    assert found.text == message.text
    assert found.tool_calls == message.tool_calls
    usage: Any = found.usage_metadata
    assert usage == (message.usage_metadata and {**message.usage_metadata, "total_cost": 0})
    assert found.response_metadata == message.response_metadata
    assert found.additional_kwargs == message.additional_kwargs
    assert len([chunk for chunk in chunks if chunk.message.usage_metadata]) == (message.usage_metadata is not None)


@pytest.mark.parametrize(
    "words", ["", " ", "a", "a b", "x" * 1000, "字" * 200, "one two\n\n  three\t" * 20, "a\x00\u2028b"]
)
def test_any_text_survives_being_split_and_joined(words: str) -> None:
    for generation in (Generation(text=words, generation_info={"a": 1}), ChatGeneration(message=AIMessage(words))):
        chunks = list(replay.split(generation))
        assert "".join(chunk.text for chunk in chunks) == words
        assert replay.join(chunks) == generation
    assert replay.join([]) is None
