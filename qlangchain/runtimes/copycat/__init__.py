"""The copycat: a model that needs no weights. It obeys every schema, calls tools, and repeats what it was told.

- Where the request has a schema, the answer has it, even where tools are offered as well: llama.cpp gives the
  schema precedence, too. Where the schema is that of tool calls, it calls as below.
- Where tools are offered and the last message is a user's, the tool is called whose name or description shares
  most words with it. With tool_choice "required" one is called in any case, first those that have not been
  called since the user spoke, so that an agent that forces calls reaches its last tool.
- Otherwise it says the tool results since the user spoke, or else what the user said.

Values are copied from the tool results and from the user's last message where they fit (numbers, quotations,
names, dates, Chinese), and are otherwise made up from a hash of the request's seed and text. Equal requests get
equal answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qlangchain.runtimes.copycat.literals import COMMON, Literals
from qlangchain.runtimes.copycat.sampler import Sampler
from qlangchain.runtimes.copycat.schema import UnsatisfiableError
from qlangchain.runtimes.scripted_reply import Reply, Request
from qlangchain.runtimes.scripted_tokens import content_text

__all__ = ["UnsatisfiableError", "copycat"]

_SILENCE: Final = "..."
_SAYS_NOTHING: Final = {"type", "title", "description", "x-guidance"}  # of what is in an object
_WORD: Final = re.compile(r"[^\W\d_]{2,}")
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PAIR: Final = re.compile(r"(?=([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{2}))")


def copycat(request: Request) -> Reply:
    """Answer the request.

    Raises:
        UnsatisfiableError: its schema, or that of a tool's parameters, allows nothing.

    """
    schema = request.schema
    if schema is not None:
        return Reply(text=json.dumps(_structured(request, schema), ensure_ascii=False))
    tool = _tool(request, request.tools, request.tool_choice)
    if tool is not None:
        return Reply(tool_calls=[{"name": tool["name"], "args": _arguments(request, tool)}])
    return Reply(text="\n".join(_results(request.messages)) or request.text or _SILENCE)


def _structured(request: Request, schema: Any) -> Any:
    calls, answers = _parted(schema)
    if calls:
        offered = {tool["name"]: tool for tool in request.tools}
        tools = [{**offered.get(call["name"], {}), **call} for call in calls]
        tool = _tool(request, tools, "auto" if answers else "required")
        if tool is not None:
            return {"name": tool["name"], "arguments": _arguments(request, tool)}
        schema = {**schema, "anyOf": answers}
    if isinstance(schema, Mapping) and schema.get("type") == "object" and set(schema) <= _SAYS_NOTHING:
        # JSON without a schema: its keys are said in the prompt, if anywhere.
        names = _literals(request).quoted or ["answer"]
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    fields = schema.get("properties", ()) if isinstance(schema, Mapping) else ()
    return Sampler(schema, _literals(request, without=set(fields)), _seed(request)).sample()


def _parted(schema: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """Part what a schema allows into tool calls, {"name": "...", "arguments": {...}}, and other answers.

    Clients force calls by such a schema, since llama.cpp's tool_choice does not.
    """
    calls, answers = [], []
    branches = schema.get("anyOf", [schema]) if isinstance(schema, Mapping) else [schema]
    for branch in branches:
        fields = branch.get("properties", {}) if isinstance(branch, Mapping) else {}
        if set(fields) == {"name", "arguments"} and isinstance(fields["name"].get("const"), str):
            definitions = {group: schema[group] for group in ("$defs", "definitions") if group in schema}
            calls.append({"name": fields["name"]["const"], "parameters": {**fields["arguments"], **definitions}})
        else:
            answers.append(branch)
    return calls, answers


def _arguments(request: Request, tool: Mapping[str, Any]) -> Any:
    schema = {"type": "object", **(tool.get("parameters") or {})}
    names = {function["name"] for function in request.tools} | set(schema.get("properties", ()))
    names |= {word.capitalize() for word in _words(tool["name"])}  # "Weather in Rome?" is not about Weather
    return Sampler(schema, _literals(request, without=names), _seed(request)).sample()


def _literals(request: Request, without: Sequence[str] | set[str] = ()) -> Literals:
    return Literals("\n".join([*_results(request.messages), request.text]), without=without)


def _seed(request: Request) -> str:
    return f"{request.body.get('seed', '')}|{request.text}"


def _since_the_user_spoke(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    last = max((index for index, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    return messages[last + 1 :]


def _results(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [content_text(m.get("content")) for m in _since_the_user_spoke(messages) if m.get("role") == "tool"]
    return [text for text in found if text]


def _tool(request: Request, tools: Sequence[Mapping[str, Any]], choice: str) -> Mapping[str, Any] | None:
    """Return the tool to call, or None to speak."""
    said, messages = request.text, request.messages
    if not tools or choice == "none":
        return None
    # max takes the first of equals, which is the order that the tools were offered in.
    if choice == "required":
        called = {
            call["function"]["name"]
            for message in _since_the_user_spoke(messages)
            for call in message.get("tool_calls") or ()
        }
        return max(tools, key=lambda tool: (tool["name"] not in called, _score(tool, said)))
    if not messages or messages[-1].get("role") != "user":
        return None
    best = max(tools, key=lambda tool: _score(tool, said))
    return best if _score(best, said) else None


def _score(tool: Mapping[str, Any], said: str) -> int:
    """Count the words that the tool shares with the text; its name counts more than its description."""
    words, name = _words(said), str(tool["name"])
    full = 1000 * bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said))
    return full + 10 * len(_words(name) & words) + len(_words(str(tool.get("description") or "")) & words)


def _words(text: str) -> set[str]:
    found = {word.lower() for word in _WORD.findall(_CAMEL.sub(" ", text))}
    return (found - COMMON) | set(_PAIR.findall(text))
