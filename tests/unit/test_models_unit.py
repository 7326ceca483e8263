"""The model objects without an engine: arguments, copies, and what they send to a played server."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import Connection, FaultServer, Play, answer, broken, running, silence, stream, unused_url
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

from qlangchain import ChatQuantized, QuantizedLLM, get_chat_model, get_llm
from qlangchain.errors import (
    AuthenticationError,
    EngineBusyError,
    EngineDiedError,
    EngineTimeoutError,
    InvalidInputError,
    NotConnectedError,
    PromptTooLongError,
    QlangchainError,
    QlangchainWarning,
    UnsupportedRequestError,
)
from qlangchain.models import base

KEY = "sk-0123456789-very-secret"
CLASSES = [ChatQuantized, QuantizedLLM]
SETTINGS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 20,
    "seed": 7,
    "presence_penalty": -1,
    "frequency_penalty": 2,
}

Make = Callable[..., Any]


@pytest.fixture(params=CLASSES)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with running() as playing:
        playing.plays = [stream("Hel", "lo")]
        yield playing


# Arguments.


@pytest.mark.parametrize("factory", [get_llm, get_chat_model, *CLASSES])
def test_a_misspelt_argument_is_not_lost(factory: Make) -> None:
    with pytest.raises(ValueError, match="temprature"):
        factory(model="demo", temprature=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_p", 1.1),
        ("top_p", -1),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", 2),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("repeat_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("seed", "lucky"),
        ("stop", 5),
        ("stop", [5]),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", float("nan")),
        ("max_retries", -1),
        ("max_retries", 21),
        ("model", 5),
        ("context_length", "long"),
        ("concurrency", 1.5),
        ("precision_required", "perhaps"),
    ],
)
def test_values_that_cannot_be(make: Make, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        make(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("hardware", "tpu", "auto, cpu, gpu, hybrid"),
        ("use_case", "fun", "production, research, personal"),
        ("method", "EXL2", "GGUF, GPTQ, AWQ"),
    ],
)
def test_unknown_words_list_the_known(make: Make, name: str, value: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{value}'") as caught:
        make(model="demo", **{name: value})
    assert known in str(caught.value)


@pytest.mark.parametrize("word", ["cpu", "CPU", " Hybrid "])
def test_words_of_any_case(make: Make, word: str) -> None:
    assert make(model="demo", hardware=word).hardware == word


def test_the_limits_themselves_are_allowed(make: Make) -> None:
    made = make(
        temperature=0, top_p=1, top_k=0, min_p=0, max_tokens=1, presence_penalty=-2, frequency_penalty=2, seed=-1
    )
    assert (made.temperature, made.top_k, made.seed) == (0, 0, -1)


@pytest.mark.parametrize(("given", "kept"), [("END", ["END"]), (["a", "b"], ["a", "b"]), (None, None), ([], [])])
def test_stop_may_be_a_string(make: Make, given: Any, kept: Any) -> None:
    assert make(stop=given).stop == kept


def test_the_model_may_be_any_path(make: Make, tmp_path: Path) -> None:
    class Mine:
        def __fspath__(self) -> str:
            return str(tmp_path)

    for path in (tmp_path, str(tmp_path), Mine()):
        assert make(model=path).model == str(tmp_path)


def test_making_an_object_touches_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLANGCHAIN_HOME", str(tmp_path / "home"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(model="/no/such/model", endpoint=None)
        make()
    assert not (tmp_path / "home").exists()


def test_preload_meets_the_error_at_once(make: Make) -> None:
    with pytest.raises(QlangchainError, match="/no/such/model"):
        make(model="/no/such/model", preload=True)


# Copies, and the key.


def everything() -> dict[str, Any]:
    return {
        **SETTINGS, "model": "demo", "hardware": "cpu", "use_case": "research", "precision_required": False,
        "context_length": 512, "concurrency": 2, "format": "Q8_0", "endpoint": "http://127.0.0.1:1", "api_key": KEY,
        "timeout": 5, "max_retries": 1, "stop": ["END"], "tags": ["a"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "duplicate",
    [lambda made: pickle.loads(pickle.dumps(made)), copy.copy, copy.deepcopy, lambda made: made.model_copy()],
)
def test_objects_are_values(make: Make, duplicate: Callable[[Any], Any]) -> None:
    made = make(**everything())
    twin = duplicate(made)
    assert type(twin) is type(made)
    assert twin == made
    assert twin.api_key.get_secret_value() == KEY
    assert twin._identifying_params == made._identifying_params


def test_the_key_is_not_shown(make: Make) -> None:
    made = make(**everything())
    for shown in (repr(made), str(made), repr(made._identifying_params), made.model_dump_json(include={"api_key"})):
        assert KEY not in shown
    assert KEY not in repr(made._get_ls_params())


@pytest.mark.parametrize("wrong", [{"hardware": "tpu"}, {"temprature": 0}, {"temperature": -1}, {"api_key": [KEY]}])
def test_the_key_is_not_in_the_error_of_another_argument(make: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
        make(**{"api_key": KEY, **wrong})
    assert KEY not in str(caught.value) + repr(caught.value)


def test_objects_that_answer_differently_have_different_identities(make: Make) -> None:
    arguments = {"endpoint": "http://127.0.0.1:1", "model": "m"}
    plain = make(**arguments)._identifying_params
    for name, value in SETTINGS.items():
        assert make(**arguments, **{name: value})._identifying_params != plain, name
    for change in ({"stop": ["END"]}, {"model": "n"}, {"endpoint": "http://127.0.0.1:2"}):
        assert make(**{**arguments, **change})._identifying_params != plain, change
    assert make(**arguments, api_key=KEY)._identifying_params == plain


# What is sent.


def said(answered: Any) -> str:
    return answered if isinstance(answered, str) else answered.text


def sent(server: FaultServer) -> dict[str, Any]:
    body: dict[str, Any] = server.posts[-1].body
    return body


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
def test_every_way_to_call(server: FaultServer, make: Make, way: str) -> None:
    made = make(endpoint=server.url, api_key=KEY, **SETTINGS)

    async def collect() -> str:
        return "".join([said(piece) async for piece in made.astream("Hi")])

    answers = {
        "invoke": lambda: said(made.invoke("Hi")),
        "ainvoke": lambda: said(asyncio.run(made.ainvoke("Hi"))),
        "stream": lambda: "".join(map(said, made.stream("Hi"))),
        "astream": lambda: asyncio.run(collect()),
        "batch": lambda: said(made.batch(["Hi"])[0]),
        "abatch": lambda: said(asyncio.run(made.abatch(["Hi"]))[0]),
    }
    assert answers[way]() == "Hello"
    body = sent(server)
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (body["model"], body["stream"]) == ("played", True)
    assert {name: body[name] for name in SETTINGS} == SETTINGS
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}


def test_settings_that_are_not_given_are_left_to_the_server(server: FaultServer, make: Make) -> None:
    make(endpoint=server.url).invoke("Hi")
    assert not set(sent(server)) & {*SETTINGS, "stop", "top_k"}


def test_the_calls_settings_replace_the_objects(server: FaultServer, make: Make) -> None:
    made = make(endpoint=server.url, temperature=0.5, seed=7, stop=["END"])
    made.invoke("Hi", temperature=0, max_tokens=3, stop=["STOP"])
    body = sent(server)
    assert (body["temperature"], body["max_tokens"], body["seed"], body["stop"]) == (0, 3, 7, ["STOP"])
    made.bind(temperature=1).invoke("Hi")
    assert (sent(server)["temperature"], sent(server)["stop"]) == (1, ["END"])
    made.invoke("Hi", temperature=None, stop=[])
    assert not {"temperature", "stop"} & set(sent(server))
    assert (made.temperature, made.stop) == (0.5, ["END"])


@pytest.mark.parametrize("stop", ["END", ["END"]])
def test_the_objects_stop_is_sent_as_a_list(server: FaultServer, make: Make, stop: Any) -> None:
    make(endpoint=server.url, stop=stop).invoke("Hi")
    assert sent(server)["stop"] == ["END"]


@pytest.mark.parametrize("unknown", ["temprature", "hardware", "n_ctx"])
def test_unknown_settings_of_a_call_are_refused(server: FaultServer, make: Make, unknown: str) -> None:
    with pytest.raises(InvalidInputError, match=unknown) as caught:
        make(endpoint=server.url).invoke("Hi", **{unknown: 1})
    assert isinstance(caught.value, ModelInvalidRequestError)
    assert "temperature" in caught.value.hint
    assert server.posts == []


@pytest.mark.parametrize(("name", "value"), [("temperature", -1), ("top_p", 2), ("max_tokens", 0)])
def test_settings_of_a_call_have_the_same_limits(server: FaultServer, make: Make, name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=name):
        make(endpoint=server.url).invoke("Hi", **{name: value})
    assert server.posts == []


def test_what_the_server_would_ignore_is_refused(server: FaultServer, make: Make) -> None:
    with pytest.raises(UnsupportedRequestError, match="top_k"):
        make(endpoint=server.url, top_k=5).invoke("Hi")
    assert server.posts == []


def test_a_chat_prompt_keeps_its_roles(server: FaultServer, make: Make) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    assert said((prompt | make(endpoint=server.url)).invoke({"question": "Why?"})) == "Hello"
    assert sent(server)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]


def test_a_text_model_composes_with_prompts_on_both_sides(server: FaultServer) -> None:
    llm = QuantizedLLM(endpoint=server.url)
    chain = PromptTemplate.from_template("Name {what}.") | llm | PromptTemplate.from_template("Why {it}?") | llm
    assert chain.invoke({"what": "a city"}) == "Hello"
    assert [request.body["messages"][0]["content"] for request in server.posts] == ["Name a city.", "Why Hello?"]


def test_raw_text_goes_as_it_is(server: FaultServer) -> None:
    server.plays = [answer(400, {"error": {"message": "only looked at"}})]
    with pytest.raises(QlangchainError):
        QuantizedLLM(endpoint=server.url, raw=True).invoke("<|im_start|>")
    assert server.posts[0].path == "/v1/completions"
    assert sent(server)["prompt"] == "<|im_start|>"


def test_what_is_known_of_an_answer(server: FaultServer) -> None:
    message = ChatQuantized(endpoint=server.url, model="played").invoke("Hi")
    assert message.usage_metadata == {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["model_name"] == "played"
    assert message.response_metadata["model_provider"] == "qlangchain"
    assert KEY not in repr(message)


def test_a_batch_is_sent_at_once(server: FaultServer) -> None:
    together = threading.Barrier(4)

    def play(connection: Connection) -> None:
        together.wait(10)  # nobody is answered before all have asked
        stream("a")(connection)

    server.plays = [play]
    assert QuantizedLLM(endpoint=server.url, timeout=20).batch(["1", "2", "3", "4"]) == ["a"] * 4


# What goes wrong, as LangChain sees it.


@pytest.mark.parametrize(
    ("play", "ours", "theirs"),
    [
        (answer(401, {"error": {"message": f"{KEY} is unknown"}}), AuthenticationError, ModelAuthenticationError),
        (answer(503, {"error": {"message": "loading"}}), EngineBusyError, ModelRateLimitError),
        (answer(400, {"error": {"code": "context_length_exceeded"}}), PromptTooLongError, ContextOverflowError),
        (broken("Hel"), EngineDiedError, ModelConnectionError),
        (silence("Hel"), EngineTimeoutError, ModelTimeoutError),
    ],
)
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
def test_errors_are_of_both_trees(
    server: FaultServer, make: Make, play: Play, ours: type[QlangchainError], theirs: type[ModelError], way: str
) -> None:
    server.plays = [play]
    made = make(endpoint=server.url, api_key=KEY, timeout=0.2 if ours is EngineTimeoutError else 20, max_retries=0)

    async def collect() -> None:
        async for _ in made.astream("Hi"):
            pass

    calls: dict[str, Callable[[], Any]] = {
        "invoke": lambda: made.invoke("Hi"),
        "ainvoke": lambda: asyncio.run(made.ainvoke("Hi")),
        "stream": lambda: list(made.stream("Hi")),
        "astream": lambda: asyncio.run(collect()),
    }
    with pytest.raises(theirs) as caught:
        calls[way]()
    assert isinstance(caught.value, ours)
    assert caught.value.is_retryable is ours.is_retryable
    assert KEY not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_endpoint_that_is_not_there(make: Make) -> None:
    with pytest.raises(NotConnectedError) as caught:
        make(endpoint=unused_url()).invoke("Hi")
    assert isinstance(caught.value, ModelConnectionError)


@pytest.mark.parametrize("messages", [[], [HumanMessage([{"type": "image", "url": "https://a/b.png"}])]])
def test_messages_that_cannot_be_sent(server: FaultServer, messages: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        ChatQuantized(endpoint=server.url).invoke(messages)
    assert isinstance(caught.value, ModelInvalidRequestError)
    assert server.posts == []


def test_fallbacks_take_over(server: FaultServer, make: Make) -> None:
    backed = make(endpoint=unused_url(), max_retries=0).with_fallbacks(
        [make(endpoint=server.url)], exceptions_to_handle=(ModelError,)
    )
    assert said(backed.invoke("Hi")) == "Hello"


def test_leaving_a_stream_closes_the_connection(server: FaultServer, make: Make) -> None:
    server.plays = [silence("Hel")]
    pieces = make(endpoint=server.url).stream("Hi")
    assert said(next(pieces)) == "Hel"
    pieces.close()
    assert server.closed.wait(10)


async def test_leaving_an_async_stream_closes_the_connection(server: FaultServer, make: Make) -> None:
    server.plays = [silence("Hel")]
    pieces = make(endpoint=server.url).astream("Hi")
    assert said(await anext(pieces)) == "Hel"
    await pieces.aclose()
    assert await asyncio.to_thread(server.closed.wait, 10)


def test_a_conversation_goes_on(server: FaultServer) -> None:
    chat = ChatQuantized(endpoint=server.url)
    history = [SystemMessage("Be brief."), HumanMessage("Hi")]
    history += [chat.invoke(history), HumanMessage("And?")]
    chat.invoke(history)
    assert [message["role"] for message in sent(server)["messages"]] == ["system", "user", "assistant", "user"]
    assert isinstance(history[2], AIMessage)


# Notices.


def test_a_notice_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_told", set())
    with warnings.catch_warnings(record=True, action="always") as caught:
        for notice in ("one thing", "one thing", "another thing", "one thing"):
            base.notify(notice)
    assert [(warning.category, str(warning.message)) for warning in caught] == [
        (QlangchainWarning, "one thing"),
        (QlangchainWarning, "another thing"),
    ]
