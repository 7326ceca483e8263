"""A chain with another model inside: every way of wrapping a model, and what cannot be exchanged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from pydantic import BaseModel

from qlangchain import ChatQuantized, QuantizedLLM, evaluate, get_chat_model, get_llm
from qlangchain.errors import InvalidInputError
from qlangchain.evaluate.chain import as_text
from qlangchain.evaluate.rewriting import exchanged, models_in
from qlangchain.models.base import Quantized
from qlangchain.runtimes.scripted import Scripted

PROMPT = ChatPromptTemplate.from_messages([("human", "{question}")])


class Method(BaseModel):
    name: str


def bits(format: str) -> str:
    """Tell the bits of a format."""
    return "4"


WAYS: dict[str, Callable[[ChatQuantized], Runnable[Any, Any]]] = {
    "alone": lambda model: model,
    "sequence": lambda model: PROMPT | model | StrOutputParser(),
    "parallel": lambda model: RunnableParallel(answer=PROMPT | model, question=RunnablePassthrough()),
    "assign": lambda model: RunnablePassthrough.assign(answer=PROMPT | model),
    "binding": lambda model: PROMPT | model.bind(stop=["."]),
    "config": lambda model: (PROMPT | model).with_config(tags=["a"]),
    "retry": lambda model: (PROMPT | model).with_retry(),
    "each": lambda model: (PROMPT | model).map(),
    "branch": lambda model: RunnableBranch((lambda _: True, PROMPT | model), PROMPT | StrOutputParser()),
    "fallbacks": lambda model: PROMPT | RunnableLambda(bits).with_fallbacks([model]),
    "first of fallbacks": lambda model: PROMPT | model.with_fallbacks([RunnableLambda(bits)]),
    "structured": lambda model: PROMPT | model.with_structured_output(Method),
    "tools": lambda model: PROMPT | model.bind_tools([bits]),
    "configurable": lambda model: PROMPT | model.configurable_fields(temperature=ConfigurableField("temperature")),
    "alternatives": lambda model: PROMPT | model.configurable_alternatives(ConfigurableField("which"), other=model),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_model_is_found_and_exchanged_however_it_is_wrapped(way: str) -> None:
    model = get_chat_model("demo", format="Q4_0", temperature=0.5)
    chain = WAYS[way](model)
    assert {one.format for one in models_in(chain)} == {"Q4_0"}
    new = exchanged(chain, lambda one: one.model_copy(update={"format": "Q8_0"}))
    assert {one.format for one in models_in(new)} == {"Q8_0"}
    assert {one.temperature for one in models_in(new)} == {0.5}
    assert {one.format for one in models_in(chain)} == {"Q4_0"}  # the chain itself stays as it is
    assert type(new) is type(chain)


def test_every_model_of_a_chain_is_exchanged_and_the_rest_stays_the_same_object() -> None:
    first, second = get_llm("demo", format="Q4_0"), get_chat_model("demo", format="Q5_1")
    parser = StrOutputParser()
    chain = PromptTemplate.from_template("{x}") | first | parser | RunnableParallel(a=second, b=first)
    assert models_in(chain) == [first, second]
    seen: list[Quantized] = []

    def change(model: Quantized) -> Quantized:
        seen.append(model)
        return model.model_copy(update={"format": "F16"})

    new: Any = exchanged(chain, change)
    assert len(seen) == 2
    assert [type(one) for one in models_in(new)] == [QuantizedLLM, ChatQuantized]
    assert new.steps[2] is parser
    assert exchanged(PROMPT | parser, change).steps[1] is parser


MODEL = get_chat_model("demo")


def hiding(model: ChatQuantized) -> list[Any]:
    def nested(question: str) -> str:
        return next(str(model.invoke(part)) for part in (question,))

    return [
        model.invoke,
        nested,
        lambda question: MODEL.invoke(question).text,
        functools.partial(lambda model, question: model.invoke(question), model),
        lambda question, chosen=model: chosen.invoke(question),
    ]


@pytest.mark.parametrize("place", range(5))
def test_a_model_inside_a_function_is_refused_with_a_way_out(place: int) -> None:
    hidden = PROMPT | RunnableLambda(hiding(get_chat_model("demo"))[place])
    with pytest.raises(InvalidInputError, match="inside the function") as caught:
        evaluate(hidden, ["x"])
    assert "model=" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda: (PROMPT | StrOutputParser(), ["x"]), "no qlangchain model"),
        (lambda: (get_chat_model("demo"), []), "no prompts"),
        (lambda: (7, ["x"]), "no chain"),
        (lambda: (lambda model: model, ["x"]), "no qlangchain model"),
    ],
)
def test_what_cannot_be_evaluated_is_said(arguments: Callable[[], tuple[Any, Any]], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        evaluate(*arguments())
    assert caught.value.hint


def test_unknown_formats_and_endpoints_are_refused_before_any_work() -> None:
    with pytest.raises(InvalidInputError, match="not known"):
        evaluate(get_chat_model("demo"), ["x"], formats="Q4_0,Q17")
    with pytest.raises(InvalidInputError, match="not known"):
        evaluate(get_chat_model("demo"), ["x"], reference="best")
    with pytest.raises(InvalidInputError, match="wanted answers"):
        evaluate(get_chat_model("demo"), ["x"], wanted=["a", "b"])
    with Scripted(["Hello!"]) as script, pytest.raises(InvalidInputError, match="endpoint"):
        evaluate(PROMPT | get_chat_model(endpoint=script.url, api_key=script.api_key), ["x"])


def test_the_name_is_a_function_whatever_was_imported_first() -> None:
    import qlangchain.evaluate.figures

    assert callable(qlangchain.evaluate)
    with pytest.raises(InvalidInputError, match="no prompts"):
        qlangchain.evaluate(get_chat_model("demo"), [])
    with pytest.raises(AttributeError, match="no attribute"):
        _ = qlangchain.evaluate.nothing


def test_answers_of_every_kind_become_text() -> None:
    from langchain_core.messages import AIMessage

    call = {"name": "bits", "args": {"b": 1, "a": 2}, "id": "1"}
    assert as_text("a") == "a"
    assert as_text(AIMessage("a")) == "a"
    assert as_text(AIMessage("", tool_calls=[call])) == as_text(AIMessage("", tool_calls=[{**call, "id": "2"}])) != ""
    assert as_text(Method(name="GPTQ")) == '{"name": "GPTQ"}'
    assert as_text({"b": AIMessage("x"), "a": [1]}) == '{"a": [1], "b": "x"}'
