"""The LangChain face on the real engine with the demo model: both kinds of model, sync and async, streamed or not."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError, ModelInvalidRequestError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

from qlangchain import ChatQuantized, QuantizedLLM, get_chat_model, get_llm
from qlangchain.errors import (
    HardwareUnavailableError,
    InvalidInputError,
    PromptTooLongError,
    QlangchainWarning,
    UnsupportedRequestError,
)
from qlangchain.models import base

QUESTION = "What is GPTQ?"


@pytest.fixture(scope="module")
def chat() -> ChatQuantized:
    return get_chat_model("demo", hardware="cpu", temperature=0, max_tokens=64)


@pytest.fixture(scope="module")
def llm() -> QuantizedLLM:
    return get_llm("demo", hardware="cpu", temperature=0, max_tokens=64)


@pytest.fixture
def fresh_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_told", set())


def test_both_pipes_run_as_advertised() -> None:
    with pytest.warns() as _:
        base._told.clear()
        prompt = PromptTemplate.from_template("What is {word}?")
        model = get_llm("demo", hardware="hybrid", temperature=0, max_tokens=64)
        answer = (prompt | model).invoke({"word": "GPTQ"})
    assert answer
    assert answer == model.invoke(QUESTION)
    assert (model | PromptTemplate.from_template("<{text}>")).invoke(QUESTION).text == f"<{answer}>"
    assert (prompt | model | prompt | model).invoke({"word": "GPTQ"})


def test_text_and_chat_models_say_the_same(chat: ChatQuantized, llm: QuantizedLLM) -> None:
    assert llm.invoke(QUESTION) == chat.invoke(QUESTION).text


def test_messages_reach_a_text_model_through_the_chat_template(chat: ChatQuantized, llm: QuantizedLLM) -> None:
    turns = [("system", "You are brief."), ("human", "What is {a}?"), ("ai", "It is {b}."), ("human", "And AWQ?")]
    prompt = ChatPromptTemplate.from_messages(turns)
    words = {"a": "GPTQ", "b": "a method"}
    expected = (prompt | chat | StrOutputParser()).invoke(words)
    assert (prompt | llm).invoke(words) == expected
    assert "".join((prompt | llm).stream(words)) == expected
    assert (prompt | llm).batch([words, words]) == [expected, expected]


async def test_messages_reach_a_text_model_in_async_calls_too(llm: QuantizedLLM) -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "What is {a}?")])
    expected = llm.invoke("What is GGUF?")
    assert await (prompt | llm).ainvoke({"a": "GGUF"}) == expected
    assert "".join([piece async for piece in (prompt | llm).astream({"a": "GGUF"})]) == expected
    assert await (prompt | llm).abatch([{"a": "GGUF"}]) == [expected]


def test_an_answer_says_what_gave_it_and_what_it_cost(chat: ChatQuantized) -> None:
    answer = chat.invoke(QUESTION)
    usage = answer.usage_metadata
    assert usage["input_tokens"] > 5
    assert usage["output_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    about = answer.response_metadata
    assert about["model_name"] == "qlangchain-demo"
    assert (about["method"], about["format"]) == ("GGUF", "Q5_1")
    assert len(about["artifact"]) == 64
    assert about["finish_reason"] == "stop"


def test_a_stream_joins_to_the_answer_and_counts_once(chat: ChatQuantized) -> None:
    chunks = list(chat.stream(QUESTION))
    assert "".join(chunk.text for chunk in chunks) == chat.invoke(QUESTION).text
    assert len([chunk for chunk in chunks if chunk.usage_metadata]) == 1
    assert [c.response_metadata["finish_reason"] for c in chunks if "finish_reason" in c.response_metadata] == ["stop"]
    assert sum(bool(chunk.text) for chunk in chunks) > 1
    whole = sum(chunks[1:], chunks[0])
    assert whole.response_metadata["model_name"] == "qlangchain-demo"


async def test_async_twins_say_the_same(chat: ChatQuantized, llm: QuantizedLLM) -> None:
    answer = chat.invoke(QUESTION)
    assert (await chat.ainvoke(QUESTION)).text == answer.text
    assert (await chat.ainvoke(QUESTION)).usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"]
    assert "".join([chunk.text async for chunk in chat.astream(QUESTION)]) == answer.text
    assert [a.text for a in await chat.abatch([QUESTION, QUESTION])] == [answer.text] * 2
    assert await llm.abatch([QUESTION, QUESTION]) == [answer.text] * 2


@pytest.mark.parametrize("kind", [get_chat_model, get_llm])
async def test_stop_is_honoured_everywhere(kind: Any) -> None:
    def text(answer: Any) -> str:
        return answer if isinstance(answer, str) else answer.text

    plain = kind("demo", hardware="cpu", temperature=0, max_tokens=64)
    whole = text(plain.invoke(QUESTION))
    word = whole.split()[3]
    cut = whole[: whole.index(word)]
    assert cut != whole
    assert text(plain.invoke(QUESTION, stop=[word])) == cut
    assert text(await plain.ainvoke(QUESTION, stop=[word])) == cut
    assert "".join(text(chunk) for chunk in plain.stream(QUESTION, stop=[word])) == cut
    assert "".join([text(chunk) async for chunk in plain.astream(QUESTION, stop=[word])]) == cut
    assert [text(a) for a in plain.batch([QUESTION, QUESTION], stop=[word])] == [cut, cut]
    assert text(plain.bind(stop=[word]).invoke(QUESTION)) == cut
    stopping = kind("demo", hardware="cpu", temperature=0, max_tokens=64, stop=[word])
    assert text(stopping.invoke(QUESTION)) == cut
    assert text(stopping.invoke(QUESTION, stop=["no such text"])) == whole


def test_call_time_settings_replace_the_constructor_s(chat: ChatQuantized) -> None:
    answer = chat.invoke(QUESTION, max_tokens=3)
    assert answer.usage_metadata["output_tokens"] == 3
    assert answer.response_metadata["finish_reason"] == "length"
    with pytest.raises(UnsupportedRequestError, match="max_token"):
        chat.invoke(QUESTION, max_token=3)
    with pytest.raises(ValueError, match="max_tokens"):
        chat.invoke(QUESTION, max_tokens=-3)


def test_a_seed_makes_sampling_repeatable(rambling: Any) -> None:
    model = get_llm(rambling, hardware="cpu", temperature=1.0, max_tokens=12)
    assert model.invoke("x", seed=1) == model.invoke("x", seed=1)
    assert model.invoke("x", seed=1) != model.invoke("x", seed=2)


def test_raw_text_bypasses_the_template(llm: QuantizedLLM) -> None:
    raw = get_llm("demo", hardware="cpu", temperature=0, max_tokens=64, raw=True)
    rendered = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert raw.invoke(rendered) == llm.invoke(QUESTION)


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    def on_llm_new_token(self, token: str, **_: Any) -> None:
        self.tokens.append(token)


@pytest.mark.parametrize("kind", [get_chat_model, get_llm])
async def test_callbacks_hear_every_token(kind: Any) -> None:
    model = kind("demo", hardware="cpu", temperature=0, max_tokens=32)
    for asynchronous in (False, True):
        ear = Tokens()
        config = {"callbacks": [ear]}
        if asynchronous:
            pieces = [piece async for piece in model.astream(QUESTION, config)]
        else:
            pieces = list(model.stream(QUESTION, config))
        spoken = "".join(piece if isinstance(piece, str) else piece.text for piece in pieces)
        assert "".join(ear.tokens) == spoken
        assert len(ear.tokens) > 1


def test_text_models_report_usage_and_keep_the_order_of_a_batch(llm: QuantizedLLM) -> None:
    questions = ["What is AWQ?", QUESTION, "What is GGUF?"]
    result = llm.generate(questions)
    assert [row[0].text for row in result.generations] == [llm.invoke(question) for question in questions]
    assert result.generations[0][0].generation_info["usage_metadata"]["output_tokens"] > 0
    assert result.llm_output["format"] == "Q5_1"


def test_a_prompt_that_does_not_fit_is_an_error_with_the_numbers(chat: ChatQuantized) -> None:
    with pytest.raises(PromptTooLongError) as caught:
        chat.invoke("quantization " * 3000)
    assert isinstance(caught.value, ContextOverflowError)
    assert caught.value.context_length == 2048
    assert caught.value.prompt_tokens > 2048
    assert not caught.value.is_retryable
    with pytest.raises(PromptTooLongError):
        list(chat.stream("quantization " * 3000))


def test_hybrid_without_a_gpu_says_so_once(fresh_notices: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_VRAM", "0")
    model = get_chat_model("demo", hardware="hybrid", max_tokens=4)
    with pytest.warns(QlangchainWarning, match="runs on the CPU alone"):
        answer = model.invoke("Hello")
    assert any("runs on the CPU alone" in notice for notice in answer.response_metadata["notices"])
    model.invoke("Hello")  # a second warning would be an error under the test's filters


def test_gpu_without_a_gpu_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_VRAM", "0")
    with pytest.raises(HardwareUnavailableError, match="no GPU") as caught:
        get_llm("demo", hardware="gpu").invoke("Hello")
    assert "xllamacpp" in caught.value.hint


def test_gpu_with_an_engine_for_the_cpu_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_VRAM", "24GiB")
    with pytest.raises(HardwareUnavailableError, match="built without GPU support") as caught:
        get_llm("demo", hardware="gpu").invoke("Hello")
    assert "pip install xllamacpp" in caught.value.hint


def test_without_a_model_the_demo_answers_and_says_so(fresh_notices: None) -> None:
    with pytest.warns(QlangchainWarning, match="demo model answers"):
        assert get_llm(hardware="cpu", max_tokens=8).invoke("Hello")


def test_bad_messages_are_refused_before_the_engine(chat: ChatQuantized) -> None:
    with pytest.raises(InvalidInputError, match="no messages"):
        chat.invoke([])
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(ModelInvalidRequestError, match="text model"):
        chat.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, image])])


def test_conversations_keep_their_turns(chat: ChatQuantized) -> None:
    history = [
        SystemMessage("You are brief."),
        HumanMessage(QUESTION),
        AIMessage("A method."),
        HumanMessage("And AWQ?"),
    ]
    longer = chat.invoke(history).usage_metadata["input_tokens"]
    assert longer > chat.invoke(history[-1:]).usage_metadata["input_tokens"]


def test_classes_take_what_the_functions_take() -> None:
    arguments = {"hardware": "cpu", "temperature": 0, "max_tokens": 8, "format": "Q4_0"}
    assert ChatQuantized(model="demo", **arguments) == get_chat_model("demo", **arguments)
    assert QuantizedLLM(model="demo", **arguments) == get_llm("demo", **arguments)
    assert ChatQuantized(model="demo", **arguments).invoke("Hi").response_metadata["format"] == "Q4_0"
    with pytest.raises(ValueError, match="temprature"):
        get_llm("demo", temprature=0)


def test_preload_starts_the_engine_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from qlangchain.runtimes import pool

    model = get_chat_model("demo", hardware="cpu", context_length=300, preload=True)
    channel = model._channel()
    assert (channel.runtime, channel.artifact.digest, channel.options) in pool.shared()._entries
    assert model.plan.context_length == 300
