"""The scripted server, a public test double: what it says, what it refuses, and how it breaks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from unit.asking import TOOL, events, http, post, refused, user
from unit.asking import echo as echo  # noqa: PLC0414 - a fixture

from qlangchain import get_chat_model, get_llm
from qlangchain.errors import (
    AuthenticationError,
    EngineFailedError,
    InvalidInputError,
    PromptTooLongError,
    RequestRejectedError,
)
from qlangchain.runtimes import llamacpp, remote
from qlangchain.runtimes import scripted_tokens as tokens
from qlangchain.runtimes.protocol import CHAT, COMPLETION, CONSTRAINED
from qlangchain.runtimes.scripted import Reply, Request, Scripted, copycat


def said(script: Scripted, **more: Any) -> dict[str, Any]:
    """The whole answer to a chat request, with what matters most on top."""
    answer = post(script, CHAT, user("Hello", **more))
    choice = answer["choices"][0]
    return {**answer, "text": choice["message"]["content"], "finish": choice["finish_reason"]}


# What it says: a list, a function, the copycat.


def test_a_list_is_said_in_order_and_the_requests_are_kept() -> None:
    with Scripted(["Hello!", Reply("Second answer")]) as script:
        chat = get_chat_model(endpoint=script.url, api_key=script.api_key, temperature=0.5, seed=3)
        assert chat.invoke("hi").text == "Hello!"
        assert chat.invoke([SystemMessage("Be brief."), HumanMessage("again")]).text == "Second answer"
    first, second = script.requests
    assert first.messages == [{"role": "user", "content": "hi"}]
    assert first.text == "hi"
    assert (first.body["temperature"], first.body["seed"]) == (0.5, 3)
    assert [message["role"] for message in second.messages] == ["system", "user"]


def test_an_exhausted_script_says_how_many_were_asked() -> None:
    with Scripted(["one", "two"]) as script:
        llm = get_llm(endpoint=script.url, api_key=script.api_key)
        assert [llm.invoke("a"), llm.invoke("b")] == ["one", "two"]
        with pytest.raises(RequestRejectedError, match="it has 2 replies, and this is request 3"):
            llm.invoke("c")
        with pytest.raises(RequestRejectedError, match="it has 2 replies, and this is request 4") as caught:
            llm.invoke("d")
    assert not caught.value.is_retryable


def test_an_endless_script_is_taken_as_it_is_needed() -> None:
    def count() -> Iterator[str]:
        number = 0
        while True:
            yield str(number)
            number += 1

    with Scripted(count()) as script:
        assert [said(script)["text"] for _ in range(3)] == ["0", "1", "2"]


def test_a_function_sees_each_request() -> None:
    def brain(request: Request) -> str | Reply:
        return request.text.upper() if "loud" in request.text else copycat(request)

    with Scripted(brain) as script:
        chat = get_chat_model(endpoint=script.url, api_key=script.api_key)
        questions = ["loud one", "quiet two", "loud three"]
        assert [answer.text for answer in chat.batch(questions)] == ["LOUD ONE", "quiet two", "LOUD THREE"]


def test_what_a_function_raises_is_shown() -> None:
    def brain(request: Request) -> str:
        raise AssertionError(f"asked {request.text!r}")

    with Scripted(brain) as script, pytest.raises(EngineFailedError, match="AssertionError: asked 'hi'"):
        get_llm(endpoint=script.url, api_key=script.api_key).invoke("hi")


@pytest.mark.parametrize("replies", ["Hello", Reply("Hello"), ["fine", 3], [None]])
def test_a_script_that_cannot_be_right_is_refused_at_once(replies: Any) -> None:
    with pytest.raises(InvalidInputError):
        Scripted(replies)


def test_equal_requests_get_equal_bytes() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}}
    body = user("Make something up", response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    contents = []
    for _ in range(2):
        with Scripted() as script, http(script) as client:
            for stream in (False, True):
                answer = client.post(CHAT, json={**body, "stream": stream, "logprobs": True})
                contents.append((answer.content, sorted(answer.headers.items())))
    assert contents[:2] == contents[2:]
    with Scripted() as script:
        texts = {said(script, seed=seed, response_format=body["response_format"])["text"] for seed in range(4)}
    assert len(texts) == 4


# The protocol.


def test_it_is_taken_for_llama_cpp(echo: Scripted) -> None:
    endpoint = remote.connect(echo.url, api_key=echo.api_key)
    assert endpoint.capabilities == llamacpp.CAPABILITIES
    assert (endpoint.model, endpoint.runtime_version) == ("scripted", "scripted")
    assert echo.requests == []  # looking at what it is asks nothing of it


def test_the_key_is_asked_for_everywhere_but_at_the_door(echo: Scripted) -> None:
    assert httpx.get(f"{echo.url}/health", trust_env=False).json() == {"status": "ok"}
    for path in ("/v1/models", "/props", "/nothing"):
        answer = httpx.get(echo.url + path, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
    with pytest.raises(AuthenticationError):
        get_llm(endpoint=echo.url, api_key="wrong").invoke("hi")
    assert echo.api_key not in repr(echo)
    with Scripted(api_key="chosen") as script:
        assert get_llm(endpoint=script.url, api_key="chosen").invoke("hi") == "hi"


def test_a_whole_answer_has_the_protocol_s_form() -> None:
    with Scripted(["one two"]) as script:
        answer = post(script, CHAT, user("hi"))
    assert answer["choices"] == [
        {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "one two"}}
    ]
    assert answer["object"] == "chat.completion"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 2
    assert usage["prompt_tokens"] == len(tokens.pieces(script.requests[0].prompt))
    assert usage["total_tokens"] == usage["prompt_tokens"] + 2
    assert answer["timings"]["predicted_n"] == 2


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_begins_with_a_role_and_ends_with_the_counts(usage: bool) -> None:
    with Scripted(["one two three"]) as script:
        found = events(script, CHAT, user("hi", stream_options={"include_usage": usage}))
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    ends = [event for event in found if event["choices"] and event["choices"][0]["finish_reason"]]
    assert [event["choices"][0]["finish_reason"] for event in ends] == ["stop"]
    texts = [event["choices"][0]["delta"].get("content") for event in found[1:] if event["choices"]]
    assert [text for text in texts if text] == ["one", " two", " thr", "ee"]
    assert [index for index, event in enumerate(found) if "usage" in event] == ([len(found) - 1] if usage else [])
    assert "timings" in found[-1]
    assert {event["object"] for event in found} == {"chat.completion.chunk"}


def test_bare_prompts_are_completed() -> None:
    with Scripted(["one two", "three", "four"]) as script:
        whole = post(script, COMPLETION, {"prompt": "Say"})
        assert (whole["object"], whole["choices"][0]["text"]) == ("text_completion", "one two")
        streamed = events(script, COMPLETION, {"prompt": tokens.tokenize("Say it"), "stream_options": {}})
        assert "".join(event["choices"][0]["text"] for event in streamed) == "three"
        assert (streamed[-1]["choices"][0]["finish_reason"], streamed[-1]["usage"]["completion_tokens"]) == ("stop", 2)
        assert get_llm(endpoint=script.url, api_key=script.api_key, raw=True).invoke("<raw>") == "four"
    assert [request.prompt for request in script.requests] == ["Say", "Say it", "<raw>"]


def test_the_route_whose_grammar_holds_speaks_llama_cpp_s_own_form() -> None:
    with Scripted(["one two three", "one two", "one two"]) as script:
        with http(script) as client:
            lines = client.post(CONSTRAINED, json={"prompt": "Say", "stream": True, "n_probs": 1}).text.split("\n\n")
        found = [json.loads(line.removeprefix("data: ")) for line in lines if line]  # and no end mark
        assert [event["content"] for event in found] == ["one", " two", " thr", "ee", ""]
        assert [event["stop"] for event in found] == [False] * 4 + [True]
        assert found[1]["completion_probabilities"][0]["token"] == " two"
        assert (found[-1]["stop_type"], found[-1]["tokens_predicted"]) == ("eos", 4)
        assert post(script, CONSTRAINED, {"prompt": "Say"})["content"] == "one two"
        assert post(script, CONSTRAINED, {"prompt": "Say", "n_predict": 1})["stop_type"] == "limit"


async def test_all_ways_to_call_a_model_agree(echo: Scripted) -> None:
    chat = get_chat_model(endpoint=echo.url, api_key=echo.api_key)
    text = "量化 is “fine”.\u2028New line, tab\t, \U0001f600"
    assert chat.invoke(text).text == text
    assert (await chat.ainvoke(text)).text == text
    assert "".join(chunk.text for chunk in chat.stream(text)) == text
    assert "".join([chunk.text async for chunk in chat.astream(text)]) == text


@pytest.mark.parametrize(
    ("settings", "text", "finish"),
    [
        ({}, "one two three four", "stop"),
        ({"stop": " three"}, "one two", "stop"),
        ({"stop": ["four", "two"]}, "one ", "stop"),
        ({"stop": ["five", ""]}, "one two three four", "stop"),
        ({"max_tokens": 2}, "one two", "length"),
        ({"max_completion_tokens": 1}, "one", "length"),
        ({"max_tokens": 0}, "one", "length"),
        ({"max_tokens": -1}, "one two three four", "stop"),
        ({"max_tokens": 2, "stop": " two"}, "one", "stop"),
        ({"max_tokens": 1, "stop": " three"}, "one", "length"),
    ],
)
def test_stop_and_max_tokens_cut_the_answer(settings: dict[str, Any], text: str, finish: str) -> None:
    with Scripted(["one two three four"] * 2) as script:
        answer = said(script, **settings)
        assert (answer["text"], answer["finish"]) == (text, finish)
        assert answer["usage"]["completion_tokens"] == len(tokens.pieces(text))
        streamed = [event["choices"][0] for event in events(script, CHAT, user("Hello", **settings))]
    assert "".join(choice["delta"].get("content") or "" for choice in streamed) == text
    assert streamed[-1]["finish_reason"] == finish


def test_the_context_limits_prompt_and_answer() -> None:
    with Scripted(["word " * 100] * 2, context_length=60) as script:
        chat = get_chat_model(endpoint=script.url, api_key=script.api_key)
        answer = chat.invoke("hi")
        assert answer.usage_metadata["total_tokens"] == 60
        assert answer.response_metadata["finish_reason"] == "length"
        for call in (chat.invoke, lambda text: list(chat.stream(text))):
            with pytest.raises(PromptTooLongError) as caught:
                call("long " * 60)
            assert caught.value.context_length == 60
            assert caught.value.prompt_tokens > 120
        error = refused(script, CHAT, user("long " * 60))
        assert (error["type"], error["n_ctx"]) == ("exceed_context_size_error", 60)
    assert len(script.requests) == 1  # what does not fit takes no reply


def test_probabilities_come_with_each_token() -> None:
    with Scripted(["one two"] * 4) as script:
        entries = post(script, CHAT, user("hi", logprobs=True, top_logprobs=3))["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in entries] == ["one", " two"]
        for entry in entries:
            assert bytes(entry["bytes"]).decode() == entry["token"]
            assert [entry["id"]] == tokens.tokenize(entry["token"])
            top = [other["logprob"] for other in entry["top_logprobs"]]
            assert top == sorted(top, reverse=True)
            assert (len(top), top[0]) == (3, entry["logprob"])
            assert sum(map(math.exp, top)) <= 1
        streamed = [event["choices"][0] for event in events(script, CHAT, user("hi", logprobs=True))]
        assert [choice["logprobs"]["content"][0]["token"] for choice in streamed if "logprobs" in choice] == [
            "one",
            " two",
        ]
        assert "logprobs" not in post(script, CHAT, user("hi"))["choices"][0]
        completed = post(script, COMPLETION, {"prompt": "hi", "logprobs": 2})["choices"][0]
    assert [len(entry["top_logprobs"]) for entry in completed["logprobs"]["content"]] == [2, 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "'messages' is required"),
        ({"messages": "hi"}, "array"),
        ({"messages": [{"content": "hi"}]}, "role"),
        ({"messages": [{"role": "user", "content": 3}]}, "string or an array"),
        (user("hi", n=2), "number of slots"),
        (user("hi", top_logprobs=2), "logprobs"),
        (user("hi", tools=[{"type": "function", "function": {"name": "a"}}], tool_choice="any"), "tool_choice: any"),
        (user("hi", tools=[{"type": "function"}]), "name"),
        (user("hi", response_format={"type": "yaml"}), "response_format type"),
        (user("hi", response_format={"type": "json_schema", "json_schema": {"schema": {"type": "zork"}}}), "zork"),
        (user("hi", response_format={"type": "json_schema", "json_schema": {"schema": {"enum": []}}}), "enum"),
    ],
)
def test_what_llama_cpp_refuses_is_refused(echo: Scripted, body: dict[str, Any], message: str) -> None:
    error = refused(echo, CHAT, body)
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    assert message in error["message"]


def test_nonsense_is_refused(echo: Scripted) -> None:
    with http(echo) as client:
        for content in (b"{nope", b"[1]", b"\xff", b""):
            assert client.post(CHAT, content=content).status_code == 400
        assert client.get("/nothing").status_code == 404
        assert client.post("/health").status_code == 404
        assert client.post(CHAT, content=iter([b"{}"])).status_code == 413  # without a length
    assert refused(echo, COMPLETION, {})["message"] == "'prompt' is required"
    assert refused(echo, COMPLETION, {"prompt": ["a", "b"]})["code"] == 400
    assert refused(echo, "/detokenize", {"tokens": [-1]})["code"] == 400
    assert refused(echo, "/v1/embeddings", {"input": []})["code"] == 400


# Tool calls and reasoning.


def test_scripted_tool_calls_are_called_and_streamed() -> None:
    calls = [{"name": "add", "args": {"a": 1, "word": "你好"}}, {"name": "stop", "args": {}, "id": "mine"}]
    with Scripted([Reply(tool_calls=calls)] * 2) as script:
        answer = post(script, CHAT, user("hi", tools=[TOOL]))
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        found = choice["message"]["tool_calls"]
        assert [call["function"]["name"] for call in found] == ["add", "stop"]
        assert json.loads(found[0]["function"]["arguments"]) == calls[0]["args"]
        assert found[1]["id"] == "mine" != found[0]["id"]
        joined: dict[int, str] = {0: "", 1: ""}
        pieces = 0
        for event in events(script, CHAT, user("hi", tools=[TOOL])):
            for call in event["choices"][0]["delta"].get("tool_calls", ()):
                joined[call["index"]] += call["function"]["arguments"]
                pieces += 1
    assert pieces > 4
    assert [json.loads(text) for text in joined.values()] == [call["args"] for call in calls]


def test_arguments_may_be_broken_and_may_be_cut() -> None:
    broken = Reply(tool_calls=[{"name": "add", "args": '{"a": '}])
    whole = Reply(tool_calls=[{"name": "add", "args": {"number": 123456789}}])
    with Scripted([broken, whole]) as script:
        call = post(script, CHAT, user("hi", tools=[TOOL]))["choices"][0]["message"]["tool_calls"][0]
        assert call["function"]["arguments"] == '{"a": '
        choice = post(script, CHAT, user("hi", tools=[TOOL], max_tokens=4))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"numb'


def test_reasoning_comes_before_the_answer() -> None:
    with Scripted([Reply("Four.", reasoning="Two and two")] * 2) as script:
        message = post(script, CHAT, user("2+2?"))["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Two and two", "Four.")
        deltas = [event["choices"][0]["delta"] for event in events(script, CHAT, user("2+2?"))]
    kinds = [kind for delta in deltas for kind in delta if delta[kind] and kind != "role"]
    assert kinds == ["reasoning_content"] * 3 + ["content"] * 2


def test_a_reply_may_lie_about_its_end_and_its_counts() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 900, "total_tokens": 907}
    with Scripted([Reply("Hi", finish_reason="content_filter", usage=usage)]) as script:
        answer = get_chat_model(endpoint=script.url, api_key=script.api_key).invoke("hi")
    assert answer.usage_metadata["output_tokens"] == 900
    assert answer.response_metadata["finish_reason"] == "content_filter"
