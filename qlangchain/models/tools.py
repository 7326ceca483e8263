"""Tools: from what a user binds to the protocol's form, the choice among them, and the schema that forces a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from qlangchain.errors import InvalidInputError
from qlangchain.models import schemas
from qlangchain.models.schemas import Schema

Tool = dict[str, Any]
ToolLike = dict[str, Any] | type | Callable[..., Any] | BaseTool
ToolChoice = dict[str, str] | bool | str | None

_ANY: Final = ("any", "required")
_NO_ARGUMENTS: Final[Schema] = {"type": "object", "properties": {}}


def to_openai(tools: Sequence[ToolLike], *, strict: bool | None = None) -> list[Tool]:
    """Turn tools (functions, classes, dicts, BaseTools) into the protocol's form.

    Raises InvalidInputError for what is no tool, and for a schema that is none.
    """
    converted: list[Tool] = []
    for tool in tools:
        try:
            converted.append(_converted(tool, strict))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInputError(
                f"{tool!r} is no tool: {error}", hint="Pass a function with a docstring, a class, or a schema."
            ) from error
    for tool in converted:
        schemas.check(parameters_of(tool), f"The schema of the tool {name_of(tool)!r}")
    return converted


def _converted(tool: ToolLike, strict: bool | None) -> Tool:
    converted: Tool = convert_to_openai_tool(tool, strict=strict)
    described = getattr(tool, "tool_call_schema", None) if isinstance(tool, BaseTool) else tool
    if isinstance(described, type) and issubclass(described, BaseModel):
        schema = described.model_json_schema()
        if schemas.is_recursive(schema):  # LangChain writes its references out, and {} where that would not end
            about = {name: value for name, value in schema.items() if name not in ("title", "description")}
            converted["function"]["parameters"] = about
    return converted


def distinct(tools: Sequence[Tool]) -> list[Tool]:
    """Leave out what is bound twice; refuse two different tools of one name, which no reply could tell apart."""
    by_name: dict[str, Tool] = {}
    for tool in tools:
        known = by_name.setdefault(name_of(tool), tool)
        if parameters_of(known) != parameters_of(tool):
            raise InvalidInputError(f"Two tools have the name {name_of(tool)!r}.", hint="Rename one of them.")
    return list(by_name.values())


def name_of(tool: Tool) -> str:
    """Return the name under which the model calls the tool."""
    name = (tool.get("function") or {}).get("name")
    if not isinstance(name, str) or not name:
        raise InvalidInputError("A tool has no name.", hint='Expected {"type": "function", "function": {"name": ...}}.')
    return name


def parameters_of(tool: Tool) -> Schema:
    """Return the JSON schema of the tool's arguments."""
    parameters: Schema = tool["function"].get("parameters") or _NO_ARGUMENTS
    return parameters


def choose(choice: ToolChoice, tools: Sequence[Tool]) -> Literal["auto", "none"] | list[Tool]:
    """Read a tool_choice: "auto", "none", or the tools of which one must be called.

    Raises InvalidInputError for a name that no tool has.
    """
    if choice is None or choice is False or choice == "auto":
        return "auto"
    if choice == "none":
        return "none"
    if choice is True or choice in _ANY:
        return list(tools)
    name: Any = choice
    if isinstance(choice, Mapping) and choice.get("type") in ("auto", "any", "required", "none"):
        return choose(choice["type"], tools)
    if isinstance(choice, Mapping):
        function: Any = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    forced = [tool for tool in tools if name_of(tool) == name]
    if not forced:
        known = ", ".join(name_of(tool) for tool in tools) or "none"
        raise InvalidInputError(
            f"tool_choice={choice!r} names no tool that is bound.", hint=f"Tools: {known}; or auto, any, none."
        )
    return forced


def call_schema(tool: Tool) -> Schema:
    """Return the schema of a call of this tool: {"name": ..., "arguments": {...}}, in that order."""
    arguments = dict(parameters_of(tool))
    definitions: Schema = {group: arguments.pop(group) for group in ("$defs", "definitions") if group in arguments}
    if "properties" not in arguments and arguments.get("type") == "object":
        arguments["properties"] = {}
    return {
        "type": "object",
        "properties": {"name": {"const": name_of(tool)}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **definitions,
    }
