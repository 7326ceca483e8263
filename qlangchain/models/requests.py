"""From a call's arguments to what is sent: tools, schemas, and the reader that checks the reply.

llama.cpp turns a named tool_choice into "auto" and lets "required" slip, so a call is forced by the schema of
the call itself: the tools go along for the chat template, and the grammar allows nothing but a call of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qlangchain.errors import InvalidInputError, UnsupportedRequestError
from qlangchain.models import schemas, tools
from qlangchain.models.replies import AutoReader, CallReader, Reader, SchemaReader
from qlangchain.models.schemas import Schema
from qlangchain.models.tools import Tool
from qlangchain.runtimes.protocol import CHAT, CONSTRAINED
from qlangchain.types import Capabilities

# What a call may say beside its sampling settings.
BOUND: Final = ("tools", "tool_choice", "response_format", "parallel_tool_calls", "logprobs", "top_logprobs")


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent beside the sampling settings, how to read the reply, and what to ask where it is mangled."""

    content: Mapping[str, Any]
    reader: Callable[[], Reader]
    forced: Request | None = None
    path: str = CHAT


def build(messages: Sequence[dict[str, Any]], bound: Mapping[str, Any], server: Capabilities, tokens: int) -> Request:
    """Build the request for messages in the protocol's form and what is bound to the call.

    `tokens` is what the answer may take; schemas are bounded so that a value of theirs fits.

    Raises:
        InvalidInputError: a tool, a schema or a tool_choice that cannot be.
        UnsupportedRequestError: the server does not have what is asked for.

    """
    content: dict[str, Any] = {"messages": list(messages)}
    if bound.get("logprobs") or bound.get("top_logprobs"):
        if not server.logprobs:
            raise UnsupportedRequestError("This server gives no logprobs.", hint="Leave out logprobs=.")
        content |= {"logprobs": True, "top_logprobs": bound.get("top_logprobs") or 1}
    offered = tools.distinct(tools.to_openai(bound["tools"])) if bound.get("tools") else []
    wanted = _format(bound.get("response_format"))
    if not offered:
        if tools.choose(bound.get("tool_choice"), []) not in ("auto", "none"):
            raise InvalidInputError("tool_choice asks for a tool, and none is bound.", hint="Bind tools= as well.")
        return _formatted(content, wanted, server, tokens)
    content["tools"] = offered
    choice = tools.choose(bound.get("tool_choice"), offered)
    if choice == "none":
        if wanted is not None and server.json_schema:
            return _formatted(content, wanted, server, tokens)
        return _formatted({**content, "tool_choice": "none"}, wanted, server, tokens)
    if choice != "auto":
        return _forced(content, choice, server, tokens)
    if wanted is not None:
        return _either(content, offered, wanted, server, tokens)
    parallel = bound.get("parallel_tool_calls")
    if parallel is not None:
        content["parallel_tool_calls"] = bool(parallel)
    forced = _forced(content, offered, server, tokens) if server.json_schema else None
    return Request(
        {**content, "tool_choice": "auto"}, lambda: AutoReader(tools=offered, parallel=parallel is not False), forced
    )


def _format(response_format: Any) -> Schema | None:
    """Read a response_format: a schema, {} for any JSON object, or None for text."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
        if schema is None:
            return {}
    elif kind == "json_schema":
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
    else:
        raise InvalidInputError(
            f"response_format={response_format!r} is not known.", hint="Its type is text, json_object or json_schema."
        )
    schemas.check(schema, "The response schema")
    found: Schema = schema
    return found


def _formatted(content: dict[str, Any], wanted: Schema | None, server: Capabilities, tokens: int) -> Request:
    if wanted is None:
        return Request(content, Reader)
    return _held(content, wanted or {"type": "object"}, lambda: SchemaReader(schema=wanted), server, tokens)


def _forced(content: dict[str, Any], choice: list[Tool], server: Capabilities, tokens: int) -> Request:
    if server.json_schema:
        calls = schemas.either([tools.call_schema(tool) for tool in choice])
        return _held({**content, "calls_only": True}, calls, lambda: CallReader(tools=choice), server, tokens)
    name = tools.name_of(choice[0])
    named = {"type": "function", "function": {"name": name}} if len(choice) == 1 else "required"
    return Request({**content, "tool_choice": named}, lambda: AutoReader(tools=choice, required=True))


def _either(content: dict[str, Any], offered: list[Tool], wanted: Schema, server: Capabilities, tokens: int) -> Request:
    """Tools and a response schema together, as agents bind them: a call, or an answer that fits the schema."""
    answer = wanted or {"type": "object"}
    if not server.json_schema:
        return _held(content, answer, lambda: AutoReader(tools=offered), server, tokens)
    both = schemas.either([*(tools.call_schema(tool) for tool in offered), answer])
    return _held(content, both, lambda: CallReader(tools=offered, schema=answer), server, tokens)


def _held(
    content: dict[str, Any], schema: Schema, reader: Callable[[], Reader], server: Capabilities, tokens: int
) -> Request:
    """A request whose reply the server's grammar holds to a schema, or at least is asked to."""
    schema = schemas.bounded(schema, tokens)
    if server.json_schema:
        return Request({**content, "schema": schema}, reader, path=CHAT if server.chat_schema else CONSTRAINED)
    response_format = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}
    return Request({**content, "response_format": response_format}, reader)
