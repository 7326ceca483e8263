"""Tools and schemas on the real engine: what is forced is held by the grammar, whatever the model would rather say."""

from __future__ import annotations

import json
from typing import Any, Literal, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, ConfigDict, Field
from pydantic.v1 import BaseModel as BaseModelV1

from qlangchain import ChatQuantized, get_chat_model
from qlangchain.errors import InvalidInputError, MalformedReplyError, PromptTooLongError, UnsupportedRequestError


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """Tell the weather of a city."""
    return f"{city}: 20 {unit}"


@tool
def now() -> str:
    """Tell the time."""
    return "12:00"


class Person(BaseModel):
    name: str
    age: int = Field(ge=0, le=150)
    nickname: str | None = None


class PersonV1(BaseModelV1):
    name: str
    age: int


class Pet(TypedDict):
    """A pet."""

    name: str
    kind: Literal["cat", "dog"]


class Node(BaseModel):
    label: Literal["a", "b"]
    next: Node | None = None


TOOLS = [add, get_weather, now]


@pytest.fixture(scope="module")
def chat() -> ChatQuantized:
    return get_chat_model("demo", hardware="cpu", temperature=0, max_tokens=300)


@pytest.fixture(scope="module")
def rambler(rambling: Any) -> ChatQuantized:
    """A model that never ends by itself and knows nothing: only the grammar can make it say something valid."""
    return get_chat_model(rambling, hardware="cpu", temperature=0, max_tokens=300)


@pytest.fixture(params=["demo", "random weights"])
def model(request: pytest.FixtureRequest, chat: ChatQuantized, rambler: ChatQuantized) -> ChatQuantized:
    return chat if request.param == "demo" else rambler


def check(call: dict[str, Any]) -> None:
    assert call["id"]
    next(t for t in TOOLS if t.name == call["name"]).args_schema.model_validate(call["args"])


@pytest.mark.parametrize("choice", ["add", "get_weather", "now"])
async def test_a_named_tool_is_called_with_arguments_that_fit(model: ChatQuantized, choice: str) -> None:
    bound = model.bind_tools(TOOLS, tool_choice=choice)
    for answer in (bound.invoke("What is 3 plus 4?"), await bound.ainvoke("What is 3 plus 4?")):
        assert [call["name"] for call in answer.tool_calls] == [choice]
        check(answer.tool_calls[0])
        assert answer.response_metadata["finish_reason"] == "tool_calls"
        assert answer.text == ""
        assert answer.usage_metadata["output_tokens"] > 0


@pytest.mark.parametrize("choice", ["any", "required", True])
def test_some_tool_is_called_where_any_is_asked_for(model: ChatQuantized, choice: Any) -> None:
    answer = model.bind_tools(TOOLS, tool_choice=choice).invoke("Hello")
    assert len(answer.tool_calls) == 1
    check(answer.tool_calls[0])


async def test_forced_calls_stream_as_chunks_that_join_to_the_call(model: ChatQuantized) -> None:
    bound = model.bind_tools(TOOLS, tool_choice="add")
    whole = bound.invoke("3 and 4").tool_calls[0]
    streams = [list(bound.stream("3 and 4")), [chunk async for chunk in bound.astream("3 and 4")]]
    for chunks in streams:
        joined = sum(chunks[1:], chunks[0])
        assert [(c["name"], c["args"]) for c in joined.tool_calls] == [(whole["name"], whole["args"])]
        assert sum(len(chunk.tool_call_chunks) for chunk in chunks) > 2
        assert len([chunk for chunk in chunks if chunk.usage_metadata]) == 1
        assert "".join(chunk.text for chunk in chunks) == ""


def test_no_tool_is_called_where_none_is_asked_for(chat: ChatQuantized) -> None:
    answer = chat.bind_tools(TOOLS, tool_choice="none").invoke("What is GPTQ?")
    assert answer.tool_calls == []


def test_tool_results_go_back_in(chat: ChatQuantized) -> None:
    call = {"name": "add", "args": {"a": 3, "b": 4}, "id": "call_1", "type": "tool_call"}
    history = [
        HumanMessage("What is 3 plus 4?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("7", tool_call_id="call_1"),
    ]
    alone = chat.bind_tools(TOOLS).invoke(history[:1]).usage_metadata["input_tokens"]
    assert chat.bind_tools(TOOLS).invoke(history).usage_metadata["input_tokens"] > alone


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize(
    "schema", [Person, PersonV1, Pet, Person.model_json_schema()], ids=["v2", "v1", "dict", "json"]
)
async def test_structured_output_always_fits(model: ChatQuantized, method: Any, schema: Any) -> None:
    chain = model.with_structured_output(schema, method=method)
    for value in (chain.invoke("Anna is 5 years old."), await chain.ainvoke("Anna is 5 years old.")):
        if isinstance(schema, type) and schema is not Pet:
            assert isinstance(value, schema)
        elif schema is Pet:
            assert value["kind"] in ("cat", "dog")
        else:
            Person.model_validate(value)


def test_include_raw_gives_the_message_too(chat: ChatQuantized) -> None:
    result = chat.with_structured_output(Person, include_raw=True).invoke("Anna is 5.")
    assert set(result) == {"raw", "parsed", "parsing_error"}
    assert isinstance(result["raw"], AIMessage)
    assert isinstance(result["parsed"], Person)
    assert result["parsing_error"] is None


def test_limits_of_numbers_and_choices_are_enforced(rambler: ChatQuantized) -> None:
    schema = {
        "title": "Form",
        "type": "object",
        "properties": {
            "size": {"type": "integer", "minimum": 3, "maximum": 5},
            "colour": {"enum": ["red", "green"]},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "anything": {},
        },
        "required": ["size", "colour", "tags", "anything"],
    }
    value = rambler.with_structured_output(schema).invoke("Fill it in.")
    assert 3 <= value["size"] <= 5
    assert value["colour"] in ("red", "green")
    assert value["tags"]
    assert set(value) == {"size", "colour", "tags", "anything"}


def test_schemas_may_refer_to_themselves(chat: ChatQuantized) -> None:
    assert isinstance(chat.with_structured_output(Node).invoke("x"), Node)


@pytest.mark.parametrize("tokens", [60, 120, 1000])
def test_strings_end_before_the_tokens_do(rambler: ChatQuantized, tokens: int) -> None:
    chain = rambler.bind(max_tokens=tokens)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": Person.model_json_schema()}}
    answer = chain.invoke("x", response_format=schema)
    assert answer.response_metadata["finish_reason"] == "stop"
    Person.model_validate_json(answer.text)


class Scores(BaseModel):
    scores: dict[str, int]


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")
    value: Any
    raw: bytes


class Branch(BaseModel):
    """A branch of a tree."""

    size: int
    branches: list[Branch] = Field(default=[], max_length=1)


@pytest.mark.parametrize("tokens", [60, 120, 1000])
@pytest.mark.parametrize("schema", [Scores, Anything])
def test_objects_with_free_keys_end_before_the_tokens_do(model: ChatQuantized, schema: Any, tokens: int) -> None:
    fields = schema.model_json_schema()
    if schema is Scores:
        fields["properties"]["scores"]["minProperties"] = 1
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": fields}}
    answer = model.invoke("Anna, 5, red, 12345", max_tokens=tokens, response_format=wanted)
    assert answer.response_metadata["finish_reason"] == "stop"
    schema.model_validate_json(answer.text)


@pytest.mark.parametrize("tokens", [60, 1000])
def test_json_of_any_form_ends_before_the_tokens_do(model: ChatQuantized, tokens: int) -> None:
    answer = model.invoke("Answer in JSON.", max_tokens=tokens, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.text), dict)
    assert model.with_structured_output(None, method="json_mode").invoke("Answer in JSON.") is not None


def test_arguments_that_nest_in_themselves_keep_their_schema(chat: ChatQuantized) -> None:
    value = chat.with_structured_output(Branch, method="function_calling").invoke("Anna, 5, red, 12345")
    assert isinstance(value, Branch)
    bound = chat.bind_tools([Branch]).kwargs["tools"][0]["function"]  # type: ignore[attr-defined]
    assert bound["parameters"]["$defs"]["Branch"]["properties"]["branches"]["items"] == {"$ref": "#/$defs/Branch"}
    assert bound["description"] == "A branch of a tree."


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
def test_a_choice_in_anthropic_s_form_is_understood(chat: ChatQuantized, choice: Any) -> None:
    assert chat.bind_tools([add], tool_choice=choice).invoke("Hello").tool_calls[0]["name"] == "add"


def test_tools_and_a_schema_together_give_one_or_the_other(model: ChatQuantized) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "Person", "schema": Person.model_json_schema()}}
    answer = model.bind_tools(TOOLS, response_format=schema).invoke("Anna is 5 years old.")
    if answer.tool_calls:
        check(answer.tool_calls[0])
        assert answer.text == ""
    else:
        Person.model_validate_json(answer.text)


def test_an_answer_that_is_cut_is_an_error_not_half_an_object(chat: ChatQuantized) -> None:
    with pytest.raises(MalformedReplyError, match="cut before its JSON was complete") as caught:
        chat.with_structured_output(Person).with_config().invoke("x", max_tokens=3)
    assert "max_tokens" in caught.value.hint


def test_what_does_not_fit_is_refused_with_the_numbers(chat: ChatQuantized) -> None:
    chat = chat.model_copy(update={"context_length": 512})
    long = "quantization " * 60
    room = 512 - chat.invoke(long, max_tokens=1).usage_metadata["input_tokens"]
    assert chat.invoke(long, max_tokens=room).text
    with pytest.raises(PromptTooLongError) as caught:
        chat.invoke(long, max_tokens=room + 1)
    error = caught.value
    assert (error.prompt_tokens, error.reserved_tokens, error.context_length) == (512 - room, room + 1, 512)
    with pytest.raises(PromptTooLongError):
        chat.bind_tools(TOOLS).invoke(long, max_tokens=room)


def test_logprobs_are_in_the_metadata(chat: ChatQuantized) -> None:
    said = chat.invoke("What is GPTQ?", logprobs=True, top_logprobs=3, max_tokens=5)
    tokens = said.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == said.text
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)
    chunks = list(chat.stream("What is GPTQ?", logprobs=True, max_tokens=5))
    assert len(sum(chunks[1:], chunks[0]).response_metadata["logprobs"]["content"]) == 5


BAD_TOOLS: list[tuple[Any, str]] = [
    (3, "is no tool"),
    ("add", "is no tool"),
    ({"name": "x", "description": "y", "parameters": {"type": "nonsense"}}, "no valid JSON schema"),
    ({"name": "x", "description": "y", "parameters": {"properties": 5}}, "no valid JSON schema"),
    (
        {
            "name": "x",
            "description": "y",
            "parameters": {"type": "object", "properties": {"a": {"$ref": "#/$defs/No"}}},
        },
        "refers to",
    ),
    (
        {
            "name": "x",
            "description": "y",
            "parameters": {"type": "object", "properties": {"a": {"$ref": "http://a/b"}}},
        },
        "refers to",
    ),
]


@pytest.mark.parametrize(("bad", "message"), BAD_TOOLS, ids=[str(number) for number in range(len(BAD_TOOLS))])
def test_a_tool_that_is_none_is_refused_before_the_engine(chat: ChatQuantized, bad: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        chat.bind_tools([bad])


def test_a_choice_that_is_none_is_refused(chat: ChatQuantized) -> None:
    with pytest.raises(InvalidInputError, match="names no tool") as caught:
        chat.bind_tools(TOOLS, tool_choice="subtract")
    assert "add, get_weather, now" in caught.value.hint
    other = {"name": "add", "description": "Another", "parameters": {"type": "object", "properties": {}}}
    with pytest.raises(InvalidInputError, match="Two tools"):
        chat.bind_tools([add, add, other]).invoke("x")
    with pytest.raises(InvalidInputError, match="none is bound"):
        chat.invoke("x", tool_choice="any")
    with pytest.raises(InvalidInputError, match="refers to"):
        chat.with_structured_output({"title": "T", "type": "object", "properties": {"a": {"$ref": "#/$defs/B"}}})
    with pytest.raises(InvalidInputError, match="method"):
        chat.with_structured_output(Person, method="magic")
    with pytest.raises(UnsupportedRequestError, match="tool_chioce"):
        chat.invoke("x", tool_chioce="any")


def test_fallbacks_keep_tools_and_schema(chat: ChatQuantized) -> None:
    from langchain_core.exceptions import ModelError
    from langchain_core.runnables import RunnableWithFallbacks

    gone = get_chat_model("/no/such/model", hardware="cpu")
    both = gone.with_fallbacks([chat], exceptions_to_handle=(ModelError,))
    with_tools = both.bind_tools(TOOLS, tool_choice="add")
    assert isinstance(with_tools, RunnableWithFallbacks)
    assert with_tools.invoke("3 and 4").tool_calls[0]["name"] == "add"
    structured = both.with_structured_output(Person)
    assert isinstance(structured, RunnableWithFallbacks)
    assert isinstance(structured.invoke("Anna is 5."), Person)


def test_arguments_are_json_that_the_protocol_understands(chat: ChatQuantized) -> None:
    answer = chat.bind_tools(TOOLS, tool_choice="add").invoke("3 and 4")
    assert chat.bind_tools(TOOLS).invoke(["3 and 4", answer, ToolMessage("7", tool_call_id=answer.tool_calls[0]["id"])])
    json.dumps(answer.tool_calls)
