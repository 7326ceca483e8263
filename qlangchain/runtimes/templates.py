"""What a model's chat template leaves out or refuses, and messages rewritten so that it shows all of them.

Templates differ: many show no tools and drop the calls of a conversation, Gemma's and Mistral's refuse two messages of
one role in a row, some know no system message, Mistral's takes no id of a call but nine letters or digits. A server
says so at best with HTTP 400, at worst with a prompt in which something is missing. So its template is asked what it
does with a word that stands nowhere else; each question once per server, and only when the messages raise it.

Nothing is lost by rewriting: tools are described in the system message, calls and results become text in the form of
Qwen's and Hermes' templates (which replies are searched for), and neighbours of one role become one message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final

from qlangchain.errors import EngineFailedError, RequestRejectedError
from qlangchain.types import Endpoint

TEMPLATE: Final = "/apply-template"
CALL: Final = "<tool_call>"
CALL_END: Final = "</tool_call>"

Message = dict[str, Any]
Ask = tuple[str, str, Any]  # method, path, JSON body
Asking = Generator[Ask, Any, bool]

_WORD: Final = "zqxprobe"
_RESULT: Final = "zqxresult"
_HI: Final[Message] = {"role": "user", "content": "Hi"}
_YES: Final[Message] = {"role": "assistant", "content": "Yes"}
_TOOL: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": _WORD,
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    },
}
_MOST_SERVERS: Final = 256
_DESCRIPTION: Final = (
    f"You can call tools. To call one, answer with\n{CALL}\n"
    f'{{"name": <its name>, "arguments": <an object of its arguments>}}\n{CALL_END}\nThe tools are:'
)

_takes: dict[tuple[Endpoint, str], bool] = {}


def _call(id: str) -> Message:
    return {"id": id, "type": "function", "function": {"name": _WORD, "arguments": '{"x": 1}'}}


def _history(*ids: str) -> dict[str, Any]:
    results = [{"role": "tool", "tool_call_id": id, "content": f"{_RESULT}{number}"} for number, id in enumerate(ids)]
    called = {"role": "assistant", "content": "", "tool_calls": [_call(id) for id in ids]}
    return {"messages": [_HI, called, *results], "tools": [_TOOL]}


# What is asked, and what a prompt must show of it.
_QUESTIONS: Final[Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]]] = {
    "system": ({"messages": [{"role": "system", "content": _WORD}, _HI]}, (_WORD,)),
    "later system": ({"messages": [_HI, _YES, {"role": "system", "content": _WORD}, _HI]}, (_WORD,)),
    "runs": ({"messages": [_HI, {"role": "user", "content": _WORD}]}, (_WORD,)),
    "tools": ({"messages": [_HI], "tools": [_TOOL]}, (_WORD,)),
    "calls": (_history("call_0123456789abcdef01234567"), (_WORD, f"{_RESULT}0")),
    "short ids": (_history("abcdef012"), (_WORD, f"{_RESULT}0")),
    "parallel": (_history("abcdef012", "abcdef013"), (_WORD, f"{_RESULT}0", f"{_RESULT}1")),
}


def fitted(endpoint: Endpoint, body: Mapping[str, Any]) -> Generator[Ask, Any, Mapping[str, Any]]:
    """Yield what the server is to be asked, and return the request with messages that its template shows.

    What the server refuses is thrown in as RequestRejectedError or EngineFailedError.
    """

    def takes(question: str) -> Asking:
        return _asked(endpoint, question)

    messages: Sequence[Message] = body["messages"]
    tools: Sequence[Mapping[str, Any]] = body.get("tools") or ()
    fitted = dict(body)
    if tools and body.get("tool_choice") != "none" and not (yield from takes("tools")):
        messages = _described(messages, tools)
        fitted = {name: value for name, value in body.items() if name not in _OF_TOOLS}
        tools = ()
    calls = [message["tool_calls"] for message in messages if message.get("tool_calls")]
    if calls or any(message["role"] == "tool" for message in messages):
        shown = bool(tools) or not body.get("tools")
        if shown and not (yield from takes("calls")):
            shown = yield from takes("short ids")
            messages = _with_short_ids(messages) if shown else messages
        if shown and any(len(group) > 1 for group in calls):
            shown = yield from takes("parallel")
        messages = messages if shown else _as_text(messages)
    messages = yield from _in_order(messages, takes)
    return {**fitted, "messages": messages}


_OF_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls")


def _asked(endpoint: Endpoint, question: str) -> Asking:
    known = _takes.get((endpoint, question))
    if known is not None:
        return known
    request, words = _QUESTIONS[question]
    try:
        answer = yield "POST", TEMPLATE, dict(request)
    except (RequestRejectedError, EngineFailedError):
        shown = False
    else:
        prompt = answer.get("prompt") if isinstance(answer, Mapping) else None
        # A server that does not render templates cannot be asked; then it gets what there is.
        shown = not isinstance(prompt, str) or all(word in prompt for word in words)
    if len(_takes) >= _MOST_SERVERS:
        _takes.clear()
    _takes[endpoint, question] = shown
    return shown


def _in_order(messages: Sequence[Message], takes: Callable[[str], Asking]) -> Generator[Ask, Any, list[Message]]:
    """Put system messages and neighbours of one role as the template takes them."""
    found = [dict(message) for message in messages]
    if any(message["role"] == "system" for message in found[1:]) and not (yield from takes("later system")):
        first = next((n for n, message in enumerate(found) if message["role"] != "system"), len(found))
        found = [*_joined(found[:first]), *(_as_user(message) for message in found[first:])]
    if found[0]["role"] == "system" and (len(found) == 1 or not (yield from takes("system"))):
        found = [_as_user(message) for message in found]
    joined = _joined(found)
    if len(joined) < len(found) and not (yield from takes("runs")):
        return joined
    return found


def _as_user(message: Message) -> Message:
    return {**message, "role": "user"} if message["role"] == "system" else message


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Make one message of neighbours of one role. Results of tools stay apart: each answers a call of its own."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last is None or last["role"] != message["role"] or message["role"] == "tool" or last.get("tool_calls"):
            joined.append(dict(message))
            continue
        said = [text for text in (last["content"], message["content"]) if text]
        joined[-1] = {**last, **message, "content": "\n\n".join(said)}
    return joined


def _described(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    described = "\n".join([_DESCRIPTION, *(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)])
    if messages[0]["role"] == "system":
        said = f"{messages[0]['content']}\n\n{described}".lstrip()
        return [{**messages[0], "content": said}, *messages[1:]]
    return [{"role": "system", "content": described}, *messages]


def _as_text(messages: Sequence[Message]) -> list[Message]:
    """Write calls as what the assistant said, and results as what the user answered."""
    found: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            found.append({"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"})
        elif message.get("tool_calls"):
            said = [message["content"]] if message.get("content") else []
            said += [_call_text(call["function"]) for call in message["tool_calls"]]
            rest = {name: value for name, value in message.items() if name != "tool_calls"}
            found.append({**rest, "content": "\n".join(said)})
        else:
            found.append(message)
    return _joined(found)


def _call_text(function: Mapping[str, Any]) -> str:
    return f'{CALL}\n{{"name": {json.dumps(function["name"])}, "arguments": {function["arguments"]}}}\n{CALL_END}'


def _with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """Give calls ids of nine letters and digits, the same for the same."""

    def short(id: object) -> str:
        return hashlib.sha256(str(id).encode(errors="replace")).hexdigest()[:9]

    found = []
    for message in messages:
        changed = dict(message)
        if message.get("tool_calls"):
            changed["tool_calls"] = [{**call, "id": short(call.get("id"))} for call in message["tool_calls"]]
        if "tool_call_id" in message:
            changed["tool_call_id"] = short(message["tool_call_id"])
        found.append(changed)
    return found
