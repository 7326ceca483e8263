"""Testing an application without a model: the scripted server says what a test needs, and fails when it should.

Run it with `pytest examples/testing.py`. In a project of one's own, the fixture belongs into conftest.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable
from pydantic import BaseModel

from qlangchain import get_chat_model, get_llm
from qlangchain.errors import EngineDiedError
from qlangchain.runtimes.scripted import Reply, Request, Scripted, copycat


class Invoice(BaseModel):
    """What is to be read out of a letter."""

    customer: str
    total: float


def summarizer(model: Runnable) -> Runnable:
    """The application under test: any function that takes its model as an argument."""
    return PromptTemplate.from_template("Summarize in one sentence: {text}") | model


@pytest.fixture
def script() -> Iterator[Scripted]:
    """A server for one test; without a script it is a copycat."""
    with Scripted() as server:
        yield server


def test_the_prompt_is_what_it_should_be() -> None:
    with Scripted(["A short summary."]) as script:
        chain = summarizer(get_llm(endpoint=script.url, api_key=script.api_key))
        assert chain.invoke({"text": "A long story."}) == "A short summary."
        assert script.requests[0].text == "Summarize in one sentence: A long story."


def test_structured_output_without_a_script(script: Scripted) -> None:
    chat = get_chat_model(endpoint=script.url, api_key=script.api_key)
    found = chat.with_structured_output(Invoice).invoke('Dear "Ada Lovelace", we have received 99.50 euros.')
    assert found == Invoice(customer="Ada Lovelace", total=99.5)


def test_a_tool_is_called_and_its_result_is_read(script: Scripted) -> None:
    def stock(item: str) -> int:
        """How many pieces of an item are in stock."""
        return {"Lamp": 7}[item]

    chat = get_chat_model(endpoint=script.url, api_key=script.api_key).bind_tools([stock])
    question = HumanMessage('Are there pieces of "Lamp" in stock?')
    asked = chat.invoke([question])
    call = asked.tool_calls[0]
    result = ToolMessage(str(stock(**call["args"])), tool_call_id=call["id"])
    assert chat.invoke([question, asked, result]).text == "7"


def test_an_engine_that_dies_in_the_middle_is_survived() -> None:
    with Scripted([Reply("Half of an ans", die_after=3), "A whole answer."]) as script:
        llm = get_llm(endpoint=script.url, api_key=script.api_key)
        with pytest.raises(EngineDiedError) as caught:
            llm.invoke("Hello")
        assert caught.value.partial == "Half of an"
        assert llm.invoke("Hello") == "A whole answer."


def test_a_function_decides_what_is_said() -> None:
    def brain(request: Request) -> str | Reply:
        return "I would rather not say." if "secret" in request.text else copycat(request)

    with Scripted(brain) as script:
        llm = get_llm(endpoint=script.url, api_key=script.api_key)
        assert llm.batch(["Your secret?", "Hello"]) == ["I would rather not say.", "Hello"]
