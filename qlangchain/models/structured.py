"""`with_structured_output`: a schema in, a chain out that gives values of it."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from qlangchain.errors import InvalidInputError
from qlangchain.models import schemas, tools

Schema = dict[str, Any] | type
Way = Literal["json_schema", "function_calling", "json_mode"]


def structured(
    model: BaseChatModel, schema: Schema | None, *, method: Way, include_raw: bool, strict: bool | None, **kwargs: Any
) -> Runnable[LanguageModelInput, Any]:
    """Return `model` followed by what turns its reply into a value of `schema`.

    Pydantic classes (v2 and v1) give instances; a TypedDict or a JSON schema gives dicts. With `include_raw` the
    result is a dict of raw, parsed and parsing_error.

    Raises InvalidInputError for a method or a schema that is none.
    """
    if method not in ("json_schema", "function_calling", "json_mode"):
        raise InvalidInputError(
            f"method={method!r} is not known.", hint="Known: json_schema, function_calling, json_mode."
        )
    if kwargs:
        raise InvalidInputError(f"with_structured_output does not take {', '.join(sorted(kwargs))}.")
    if schema is None and method != "json_mode":
        raise InvalidInputError(f"method={method!r} needs a schema.", hint="Pass a class or a JSON schema.")
    described = None if schema is None else _described(schema, strict)
    traced = {"ls_structured_output_format": {"kwargs": {"method": method, "strict": strict}, "schema": schema}}
    parser: Runnable[Any, Any]
    if method == "function_calling":
        assert schema is not None
        [tool] = tools.to_openai([schema], strict=strict)
        name = tool["function"]["name"]
        bound: Runnable[LanguageModelInput, Any] = model.bind_tools([tool], tool_choice=name, **traced)
        parser = _tool_parser(schema, name)
    else:
        # JSON mode promises only JSON; where the schema is known, the grammar can as well promise the schema.
        response_format: dict[str, Any] = {"type": "json_object"}
        if described is not None:
            response_format = {
                "type": "json_schema",
                "json_schema": {"name": described.get("title", "reply"), "schema": described, "strict": strict},
            }
        bound = model.bind(response_format=response_format, **traced)
        parser = _text_parser(schema)
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _described(schema: Schema, strict: bool | None) -> dict[str, Any]:
    if isinstance(schema, Mapping) and "function" not in schema:
        # A dict without a title is a JSON schema all the same.
        schema = {"title": "reply", "description": "", **schema}
    try:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            described = schema.model_json_schema()  # LangChain would inline its references, and lose recursion
        else:
            described = convert_to_json_schema(schema, strict=strict)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidInputError(
            f"{schema!r} is no schema: {error}", hint="Pass a pydantic class, a TypedDict or a JSON schema."
        ) from error
    schemas.check(described, "The schema")
    return described


def _text_parser(schema: Schema | None) -> BaseOutputParser[Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def _tool_parser(schema: Schema, name: str) -> BaseOutputParser[Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
