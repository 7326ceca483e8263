"""Tools and schemas on the scripted server, through LangChain: whatever requests the adapter makes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel
from unit.asking import echo as echo  # noqa: PLC0414 - a fixture

from qlangchain import get_chat_model
from qlangchain.errors import MalformedReplyError
from qlangchain.runtimes.scripted import Reply, Scripted


def get_weather(city: str, days: int = 1) -> str:
    """Get the weather of a city."""
    return f"{city}: rain for {days} days"


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


@pytest.mark.parametrize("choice", [None, "any", "get_weather"])
def test_scripted_calls_arrive_as_calls_however_they_are_asked_for(choice: str | None) -> None:
    wanted = Reply(tool_calls=[{"name": "get_weather", "args": {"city": "Oslo", "days": 3}}])
    with Scripted([wanted, wanted]) as script:
        chat = get_chat_model(endpoint=script.url, api_key=script.api_key)
        bound = chat.bind_tools([get_weather], tool_choice=choice)
        answer = bound.invoke([SystemMessage("Be brief."), HumanMessage("Oslo?")])
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("get_weather", wanted_args(wanted))]
        bound.invoke("Rome?")
    first, second = script.requests
    assert [(message["role"], message["content"]) for message in first.messages] == [
        ("system", "Be brief."),
        ("user", "Oslo?"),
    ]
    assert (second.text, [tool["name"] for tool in second.tools]) == ("Rome?", ["get_weather"])


def wanted_args(reply: Reply) -> Any:
    return reply.tool_calls[0]["args"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_is_scripted_or_copied(method: Any) -> None:
    ada = {"name": "Ada", "age": 36}
    reply = Reply(tool_calls=[{"name": "Person", "args": ada}]) if method == "function_calling" else json.dumps(ada)
    with Scripted([reply]) as script, Scripted() as copying:
        for server in (script, copying):
            chat = get_chat_model(endpoint=server.url, api_key=server.api_key)
            chain = chat.with_structured_output(Person, method=method)
            assert chain.invoke("Ada is 36 years old.") == Person(name="Ada", age=36)


def test_broken_answers_are_seen_as_broken() -> None:
    with Scripted(['{"name": "Ada"}', "Ada is 36."]) as script:
        chat = get_chat_model(endpoint=script.url, api_key=script.api_key)
        for _ in range(2):
            with pytest.raises(MalformedReplyError):
                chat.with_structured_output(Person).invoke("Who?")


def test_a_conversation_with_a_tool_comes_to_its_end(echo: Scripted) -> None:
    chat = get_chat_model(endpoint=echo.url, api_key=echo.api_key).bind_tools([get_weather])
    messages: list[Any] = [HumanMessage("How is the weather in Oslo for 3 days?")]
    asked = chat.invoke(messages)
    assert [(call["name"], call["args"]) for call in asked.tool_calls] == [("get_weather", {"city": "Oslo", "days": 3})]
    result = ToolMessage(get_weather(**asked.tool_calls[0]["args"]), tool_call_id=asked.tool_calls[0]["id"])
    assert chat.invoke([*messages, asked, result]).text == "Oslo: rain for 3 days"
    assert echo.requests[1].messages[1]["tool_calls"][0]["function"]["name"] == "get_weather"
