"""The copycat, the scripted server's brain: every schema is obeyed, tools are called, literals are copied."""

from __future__ import annotations

import datetime
import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from qlangchain.runtimes.copycat import UnsatisfiableError, copycat
from qlangchain.runtimes.copycat.literals import Literals
from qlangchain.runtimes.protocol import CHAT, COMPLETION, CONSTRAINED
from qlangchain.runtimes.scripted import Request
from qlangchain.runtimes.scripted_tokens import render


def ask(*messages: dict[str, Any] | str, **body: Any) -> Request:
    turns = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return Request(CHAT, {"messages": turns, **body})


def structured(text: str, schema: Any, **body: Any) -> Any:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return json.loads(copycat(ask(text, response_format=wanted, **body)).text)


# Literals.


class Address(BaseModel):
    code: str = Field(pattern=r"^[A-Z]{2}-\d{4,6}$")


class Person(BaseModel):
    name: str
    age: Annotated[int, Field(ge=0, lt=150)]
    height: float | None = None
    mood: Literal["sad", "happy"]
    born: datetime.date
    addresses: list[Address] = Field(min_length=1, max_length=3)
    friend: Person | None = None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What is the weather in San Francisco, CA?", ["San Francisco, CA"]),
        ("Create a customer named '你好啊集团' (Hello Group)", ["你好啊集团", "Hello Group"]),
        ("Paris, Rome and Oslo. It's Bob's.", ["Paris", "Rome", "Oslo", "Bob"]),
        ("add -3 to 4.5, 1,234 and x=7", [-3, 4.5, 1234, 7]),
        ("ORD-1234, v2, 1-2-3", ["ORD-1234"]),
        ("mail ada@example.org about https://x.org/a?b=1.", ["ada@example.org", "https://x.org/a?b=1"]),
        ("on 2026-03-14 at 9", ["2026-03-14", 9]),
        ("查询 3 个城市", ["查询", 3, "个城市"]),
        ("他说“再见”。", ["他说", "再见"]),
        ("I think so", []),
    ],
)
def test_literals_are_found(text: str, found: list[Any]) -> None:
    literals = [literal.text if literal.number is None else literal.number for literal in Literals(text).beside("")]
    assert literals == found


def test_values_are_copied_where_they_fit() -> None:
    schema = Person.model_json_schema()
    text = "Ada is 36 (height: 1.83) and happy. Born on 1815-12-10, she lives in AB-12345."
    found = structured(text, schema)
    assert (found["name"], found["age"], found["height"], found["mood"]) == ("Ada", 36, 1.83, "happy")
    assert found["born"] == "1815-12-10"
    assert found["addresses"][0]["code"] == "AB-12345"
    assert found["friend"] is None  # the default, since nothing is said of a friend


def test_a_name_in_the_text_tells_which_value_is_whose() -> None:
    numbers = {"type": "object", "properties": {name: {"type": "integer"} for name in ("b", "a")}}
    assert structured("Multiply a=4 by b = 5.", numbers) == {"a": 4, "b": 5}
    places = {"type": "object", "properties": {name: {"type": "string"} for name in ("to_city", "from_city")}}
    assert structured("From city Oslo to city: Rome", places) == {"from_city": "Oslo", "to_city": "Rome"}


def test_a_list_takes_all_that_is_left() -> None:
    cities = {"type": "array", "items": {"type": "string"}}
    assert structured("Paris, Rome and Oslo", cities) == ["Paris", "Rome", "Oslo"]
    assert structured("Paris, Rome and Oslo", {**cities, "maxItems": 2}) == ["Paris", "Rome"]
    assert len(structured("nothing of the kind", cities)) == 1


def test_the_seed_changes_what_is_made_up() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}}
    assert structured("go", schema, seed=1) == structured("go", schema, seed=1)
    assert len({str(structured("go", schema, seed=seed)) for seed in range(5)}) > 1


def test_json_without_a_schema_has_the_keys_that_are_quoted() -> None:
    any_json = {"type": "json_object"}
    asked = ask("A joke as JSON with 'setup' and 'punchline' keys.", response_format=any_json)
    assert set(json.loads(copycat(asked).text)) == {"setup", "punchline"}
    assert set(json.loads(copycat(ask("Say something", response_format=any_json)).text)) == {"answer"}


# Speaking and calling.


def tool(name: str, description: str = "", **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool("get_weather", "Get the weather at a location.", location="string")
MAGIC = tool("magicFunction", "Applies a secret rule to a number.", input="integer")
TIME = tool("now")
FORECAST = tool("forecast", "查询天气预报", city="string")


def called(request: Request) -> list[tuple[str, Any]]:
    return [(call["name"], call["args"]) for call in copycat(request).tool_calls]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the weather in San Francisco, CA?", [("get_weather", {"location": "San Francisco, CA"})]),
        ("What is magicFunction(3)? Use the tool.", [("magicFunction", {"input": 3})]),
        ("Tell me a secret about 7", [("magicFunction", {"input": 7})]),
        ("“北京”的天气怎么样？", [("forecast", {"city": "北京"})]),
        ("Use now to tell the weather", [("now", {})]),
        ("Hello!", []),
        ("Get the tool that you use", []),
    ],
)
def test_the_tool_is_called_that_is_spoken_of(text: str, expected: list[Any]) -> None:
    assert called(ask(text, tools=[WEATHER, MAGIC, TIME, FORECAST])) == expected


def test_tool_choice_is_obeyed() -> None:
    tools = [WEATHER, MAGIC]
    assert called(ask("The weather?", tools=tools, tool_choice="none")) == []
    assert [name for name, _ in called(ask("Hello!", tools=tools, tool_choice="required"))] == ["get_weather"]
    assert [name for name, _ in called(ask("A secret", tools=tools, tool_choice="required"))] == ["magicFunction"]
    # llama.cpp reads an object as "auto", so that naming a tool forces nothing.
    named = {"type": "function", "function": {"name": "magicFunction"}}
    assert called(ask("Hello!", tools=tools, tool_choice=named)) == []


def results(*texts: str) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    return [asked, *({"role": "tool", "content": text, "tool_call_id": "1"} for text in texts)]


def test_tool_results_are_repeated_and_not_asked_for_again() -> None:
    request = ask("The weather in Oslo?", *results("Rain", "Wind"), tools=[WEATHER])
    assert copycat(request).text == "Rain\nWind"
    assert called(request) == []
    again = ask("The weather in Oslo?", *results("Rain"), "And the weather in Rome?", tools=[WEATHER])
    assert called(again) == [("get_weather", {"location": "Rome"})]


def test_an_agent_that_forces_calls_reaches_its_last_tool() -> None:
    final = tool("Answer", "The final answer", degrees="integer")
    request = ask("The weather?", *results("It is 21 degrees"), tools=[WEATHER, final], tool_choice="required")
    assert called(request) == [("Answer", {"degrees": 21})]


def test_a_schema_wins_over_tools_as_it_does_in_llama_cpp() -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}}
    reply = copycat(ask("The weather at 5?", tools=[WEATHER], tool_choice="required", response_format=wanted))
    assert (reply.text, reply.tool_calls) == ("5", ())


def call_schema(offered: dict[str, Any]) -> dict[str, Any]:
    function = offered["function"]
    fields = {"name": {"const": function["name"]}, "arguments": function["parameters"]}
    return {"type": "object", "properties": fields, "required": ["name", "arguments"], "additionalProperties": False}


def test_a_schema_of_calls_is_answered_with_the_right_call() -> None:
    number = tool("MagicFunction", input="integer")
    number["function"]["parameters"]["properties"]["input"] = {"$ref": "#/$defs/N"}
    calls = {"anyOf": [call_schema(WEATHER), call_schema(number)], "$defs": {"N": {"type": "integer", "minimum": 3}}}
    assert structured("magic 7", calls) == {"name": "MagicFunction", "arguments": {"input": 7}}
    assert structured("Hello!", call_schema(MAGIC))["name"] == "magicFunction"
    either = {"anyOf": [call_schema(WEATHER), {"type": "integer"}]}
    assert structured("The weather in Oslo, 5 times", either)["arguments"] == {"location": "Oslo"}
    assert structured("Hello 5!", either) == 5
    # The same after the client has rendered the prompt.
    prompt = render([{"role": "user", "content": "Weather in Rome?"}], [WEATHER])
    assert json.loads(copycat(Request(CONSTRAINED, {"prompt": prompt, "json_schema": either})).text) == {
        "name": "get_weather",
        "arguments": {"location": "Rome"},
    }


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ask({"role": "system", "content": "Be brief."}, "Hi"), "Hi"),
        (ask("Hi", {"role": "assistant", "content": "Ho"}), "Hi"),
        (ask({"role": "system", "content": "Be brief."}), "Be brief."),
        (ask({"role": "user", "content": [{"type": "text", "text": text} for text in ("1", "2")]}), "1\n2"),
        (ask(""), "..."),
        (ask(), "..."),
        (Request(COMPLETION, {"prompt": "Once"}), "Once"),
        (Request(COMPLETION, {"prompt": ["Once"]}), "Once"),
        (Request(COMPLETION, {"prompt": ""}), "..."),
    ],
)
def test_it_repeats_what_it_was_told(request_: Request, text: str) -> None:
    assert copycat(request_).text == text


def test_parameters_that_allow_nothing_are_an_error() -> None:
    broken = {"type": "function", "function": {"name": "broken", "parameters": {"properties": {"a": {"type": "zork"}}}}}
    with pytest.raises(UnsatisfiableError, match="zork"):
        copycat(ask("broken", tools=[broken]))
