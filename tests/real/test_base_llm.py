"""What LangChain's test suites do not ask of a BaseLLM, because there is none for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

from qlangchain import QuantizedLLM, get_llm
from qlangchain.errors import PromptTooLongError
from qlangchain.runtimes.channel import Channel

QUESTIONS = ["What is GPTQ?", "What is AWQ?", "What is GGUF?", "What is Q4_0?", "What is Q8_0?"]
TOO_LONG = "quantization " * 1000


@pytest.fixture(scope="module")
def llm() -> QuantizedLLM:
    return get_llm("demo", hardware="cpu", temperature=0, max_tokens=48, context_length=512)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every request that goes to the engine."""
    seen: list[Any] = []
    stream = Channel.stream

    def spy(self: Channel, path: str, content: Any, sampling: Any, **more: Any) -> Any:
        seen.append((content, sampling))
        return stream(self, path, content, sampling, **more)

    monkeypatch.setattr(Channel, "stream", spy)
    return seen


@pytest.fixture
def cached() -> Iterator[None]:
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(None)


async def test_batches_keep_their_order(llm: QuantizedLLM) -> None:
    alone = [llm.invoke(question) for question in QUESTIONS]
    assert llm.batch(QUESTIONS) == alone
    assert llm.batch(QUESTIONS, {"max_concurrency": 2}) == alone
    assert await llm.abatch(QUESTIONS) == alone
    assert dict(llm.batch_as_completed(QUESTIONS)) == dict(enumerate(alone))
    assert llm.batch([]) == []


async def test_each_input_of_a_batch_fails_by_itself(llm: QuantizedLLM) -> None:
    inputs = [QUESTIONS[0], TOO_LONG, QUESTIONS[1]]
    for answers in (
        llm.batch(inputs, return_exceptions=True),
        await llm.abatch(inputs, return_exceptions=True),
    ):
        assert [type(answer) for answer in answers[::2]] == [str, str]
        assert isinstance(answers[1], PromptTooLongError)
    with pytest.raises(PromptTooLongError):
        llm.batch(inputs)
    with pytest.raises(PromptTooLongError):
        await llm.abatch(inputs)


@pytest.mark.usefixtures("cached")
def test_cache_keys_hold_the_arguments_of_the_call(llm: QuantizedLLM, calls: list[Any]) -> None:
    def asked(**arguments: Any) -> int:
        before = len(calls)
        llm.invoke(QUESTIONS[0], **arguments)
        return len(calls) - before

    assert asked() == 1
    assert asked() == 0
    assert asked(max_tokens=5) == 1
    assert asked(max_tokens=6) == 1
    assert asked(max_tokens=5) == 0
    assert asked(temperature=0.5, seed=3) == 1
    assert asked(temperature=0.5, seed=4) == 1
    assert asked(stop=["a"]) == 1
    assert asked(stop=["b"]) == 1
    assert asked() == 0


@pytest.mark.usefixtures("cached")
def test_two_artifacts_or_two_temperatures_never_share_an_answer(calls: list[Any]) -> None:
    base = {"hardware": "cpu", "temperature": 0, "max_tokens": 8}
    models = [
        get_llm("demo", **base),
        get_llm("demo", **{**base, "temperature": 0.1, "seed": 1}),
        get_llm("demo", **base, format="Q4_0"),
        get_llm("demo", **base, format="F16"),
        get_llm("demo", **base, context_length=512),
        get_llm("demo", **base, raw=True),
        get_llm("demo", **{**base, "max_tokens": 9}),
    ]
    for model in models:
        model.invoke(QUESTIONS[0])
    assert len(calls) == len(models)
    for model in models:
        model.invoke(QUESTIONS[0])
    assert len(calls) == len(models)


@pytest.mark.usefixtures("cached")
def test_two_conversations_never_share_an_answer(llm: QuantizedLLM, calls: list[Any]) -> None:
    prompts = [
        ChatPromptTemplate.from_messages([("human", "a"), ("ai", "b"), ("human", "{x}")]),
        ChatPromptTemplate.from_messages([("human", "a\nAI: b\nHuman: {x}")]),
        PromptTemplate.from_template("Human: a\nAI: b\nHuman: {x}"),
    ]
    for prompt in prompts:
        (prompt | llm).invoke({"x": "c"})
    assert len(calls) == 3


def test_both_pipe_directions(llm: QuantizedLLM) -> None:
    prompt = PromptTemplate.from_template("What is {x}?")
    assert (prompt | llm).invoke({"x": "GPTQ"}) == llm.invoke("What is GPTQ?")
    assert (llm | prompt).invoke("What is GPTQ?").text == f"What is {llm.invoke('What is GPTQ?')}?"
    assert (llm | prompt.partial()).invoke("Hi").text
    with_two = {"draft": llm, "tone": lambda _: "short"} | PromptTemplate.from_template("{tone}: {draft}")
    assert with_two.invoke("What is AWQ?").text == f"short: {llm.invoke('What is AWQ?')}"


async def test_events_tell_of_every_token(llm: QuantizedLLM) -> None:
    events = [event async for event in llm.astream_events(QUESTIONS[0], version="v2")]
    streamed = "".join(str(e["data"]["chunk"]) for e in events if e["event"] == "on_llm_stream")
    assert streamed == llm.invoke(QUESTIONS[0])


def test_tokens_are_counted_by_the_model_s_own_tokenizer(llm: QuantizedLLM) -> None:
    from transformers import AutoTokenizer

    from qlangchain.artifacts.source import DEMO_DIRECTORY

    tokenizer = AutoTokenizer.from_pretrained(DEMO_DIRECTORY)
    text = "Q4_K_M takes 4.9 bits; 量化 🙂"
    assert llm.get_token_ids(text) == tokenizer.encode(text, add_special_tokens=False)
    assert llm.get_num_tokens(text) == len(llm.get_token_ids(text))


def test_retries_keep_a_batch_whole(llm: QuantizedLLM) -> None:
    retrying = llm.with_retry(retry_if_exception_type=(ConnectionError,), stop_after_attempt=2)
    assert retrying.batch(QUESTIONS[:2]) == llm.batch(QUESTIONS[:2])
