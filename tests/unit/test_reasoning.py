"""What a model thinks before it answers is kept apart from the answer, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qlangchain import ChatQuantized, get_chat_model
from qlangchain.runtimes.scripted import Reply, Scripted

THOUGHT = [{"type": "reasoning", "reasoning": "two and two"}, {"type": "text", "text": "four"}]


@pytest.fixture
def chat() -> Iterator[ChatQuantized]:
    with Scripted([Reply(text="four", reasoning="two and two")]) as script:
        yield get_chat_model(endpoint=script.url, api_key=script.api_key)


def test_it_is_reasoning_content_of_the_message(chat: ChatQuantized) -> None:
    answer = chat.invoke("2 + 2?")
    assert answer.text == "four"
    assert answer.additional_kwargs["reasoning_content"] == "two and two"
    assert answer.content_blocks == THOUGHT


def test_it_streams(chat: ChatQuantized) -> None:
    chunks = list(chat.stream("2 + 2?"))
    assert sum(chunks[1:], chunks[0]).content_blocks == THOUGHT


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_it_has_an_event_stream_of_its_own(chat: ChatQuantized) -> None:
    stream = await chat.astream_events("2 + 2?", version="v3")
    assert await stream.reasoning == "two and two"
    assert await stream.text == "four"
