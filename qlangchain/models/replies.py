"""Reading a reply to which tools or a schema were bound: it is checked before it is believed.

A reader is fed the deltas of a stream and gives those to hand on. It holds back the end (finish reason, token
counts) until the reply has proven right; `Retry` asks for a second, constrained pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import uuid4

from qlangchain.errors import MalformedReplyError
from qlangchain.models import schemas
from qlangchain.models.schemas import Schema
from qlangchain.models.tools import Tool, name_of, parameters_of
from qlangchain.runtimes.protocol import Delta
from qlangchain.runtimes.templates import CALL, CALL_END

# What tool calls look like in the templates of the common families; none of it belongs into an answer's text.
_MARKS: Final = ("<tool_call>", "<|tool_call|>", "[TOOL_CALLS]", "<function=", "<|python_tag|>", "<tool_calls>")
# Blanks and the beginning of a mark at the end of what has been said so far.
_BEGINNINGS: Final = sorted({re.escape(mark[:n]) for mark in _MARKS for n in range(1, len(mark))}, key=len)
_UNCERTAIN: Final = re.compile(rf"\s*(?:{'|'.join(reversed(_BEGINNINGS))})?\Z")
_OPENING: Final = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')


class Retry(Exception):  # noqa: N818 - not an error: a request of the reader to its caller
    """The reply called a tool in a way that cannot be used; ask again with the call forced."""


@dataclass(slots=True)
class Reader:
    """Hands a reply on as it comes: nothing was bound to it."""

    last: list[Delta] = field(default_factory=list)

    def feed(self, delta: Delta) -> Iterator[Delta]:
        """Yield what may be handed on now."""
        yield delta

    def end(self) -> Iterator[Delta]:
        """Yield what was held back, once the reply has proven right; raise what is wrong with it."""
        yield from self.last


@dataclass(slots=True)
class SchemaReader(Reader):
    """Hands on text that must be JSON which fits a schema (None: any JSON object)."""

    schema: Schema | None = None
    text: list[str] = field(default_factory=list)

    def feed(self, delta: Delta) -> Iterator[Delta]:
        """Yield the text; hold back the end."""
        delta = replace(delta, text=delta.text.rstrip("\n"))  # a line end after the value is no part of it
        self.text.append(delta.text)
        now, held = _split(delta)
        if held:
            self.last.append(held)
        if now:
            yield now

    def end(self) -> Iterator[Delta]:
        """Raise MalformedReplyError unless the text is what was asked for."""
        text = "".join(self.text)
        value = _json(text, self.last)
        wrong = schemas.fault(value, self.schema) if self.schema is not None else None
        if wrong or (self.schema is None and not isinstance(value, dict)):
            raise MalformedReplyError(f"The reply does not fit the schema: {wrong or 'not an object'}.", text=text)
        yield from self.last


@dataclass(slots=True)
class AutoReader(Reader):
    """Hands on text and the calls that the engine has parsed; finds what its parser dropped or mangled."""

    tools: Sequence[Tool] = ()
    required: bool = False
    parallel: bool = True
    text: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    unsaid: str = ""

    def feed(self, delta: Delta) -> Iterator[Delta]:
        """Yield text; hold back calls until they are whole, because a mangled one cannot be taken back."""
        self.text.append(delta.text)
        for call in delta.tool_calls:
            part = self.calls.setdefault(int(call.get("index") or 0), {"name": "", "arguments": "", "id": ""})
            function = call.get("function") or {}
            part["name"] += function.get("name") or ""
            part["arguments"] += function.get("arguments") or ""
            part["id"] = part["id"] or call.get("id") or ""
        now, held = _split(replace(delta, tool_calls=(), text=self._certain(delta.text)))
        if held:
            self.last.append(held)
        if now:
            yield now

    def _certain(self, text: str) -> str:
        """The text that is certainly no call: blanks and what may be the beginning of a mark wait for what follows."""
        self.unsaid += text
        first = min((at for mark in _MARKS if (at := self.unsaid.find(mark)) >= 0), default=None)
        end = len(_UNCERTAIN.sub("", self.unsaid, count=1) if first is None else self.unsaid[:first].rstrip())
        said, self.unsaid = self.unsaid[:end], self.unsaid[end:]
        return said

    def end(self) -> Iterator[Delta]:
        """Yield the calls; raise Retry where the reply tried to call and did not manage.

        Raises MalformedReplyError for a reply that says nothing.
        """
        text = "".join(self.text)
        finish = _finish(self.last)
        if not self.calls:
            self.calls = dict(enumerate(_spoken(text)))
            finish = "tool_calls" if self.calls else finish
        elif any(mark in text for mark in _MARKS):
            raise Retry
        lost = finish == "tool_calls" or self.required or any(mark in text for mark in _MARKS)
        if lost and not self.calls:
            raise Retry
        by_name = {name_of(tool): tool for tool in self.tools}
        for call in self.calls.values():
            tool = by_name.get(call["name"])
            arguments = _loads(call["arguments"] or "{}")
            if tool is None or not isinstance(arguments, dict) or schemas.fault(arguments, parameters_of(tool)):
                raise Retry
        if not text.strip() and not self.calls:
            raise _nothing(finish)
        if not self.calls and self.unsaid:
            yield Delta(text=self.unsaid)
        for index, call in list(self.calls.items())[: None if self.parallel else 1]:
            yield Delta(tool_calls=(_part(index, call["id"] or _new_id(), call["name"], call["arguments"] or "{}"),))
        for delta in self.last:
            yield replace(delta, finish_reason=finish) if delta.finish_reason else delta


@dataclass(slots=True)
class CallReader(Reader):
    """Turns text that the grammar holds to {"name": ..., "arguments": ...} into a streamed tool call.

    With `schema`, the text may also be an answer that fits it, and is then handed on as text.
    """

    tools: Sequence[Tool] = ()
    schema: Schema | None = None
    text: str = ""
    id: str = ""
    sent: int = 0
    start: int = 0

    def feed(self, delta: Delta) -> Iterator[Delta]:
        """Yield the call's name as soon as it is known, then its arguments as they come."""
        self.text += delta.text
        _, held = _split(replace(delta, text=""))
        if held:
            self.last.append(held)
        if self.schema is not None:
            return  # which of the two it is shows only when it is whole
        if not self.id:
            opening = _OPENING.match(self.text)
            if not opening:
                return
            self.id, self.start = _new_id(), opening.end()
            self.sent = self.start
            yield Delta(tool_calls=(_part(0, self.id, json.loads(opening[1]), ""),))
        # The last brace closes the call, not its arguments; it stays back until it is known which one it is.
        end = len(self.text.rstrip()) - 1 if self.text.rstrip().endswith("}") else len(self.text)
        if end > self.sent:
            part, self.sent = self.text[self.sent : end], end
            yield Delta(tool_calls=(_part(0, None, None, part),))

    def end(self) -> Iterator[Delta]:
        """Raise MalformedReplyError unless the text is a call that fits its tool, or fits the schema."""
        value = _json(self.text, self.last)
        name = value.get("name") if isinstance(value, dict) else None
        tool = next((tool for tool in self.tools if name_of(tool) == name), None)
        is_call = tool is not None and isinstance(value, dict) and set(value) == {"name", "arguments"}
        if self.schema is not None and not (
            is_call and tool and not schemas.fault(value["arguments"], parameters_of(tool))
        ):
            wrong = schemas.fault(value, self.schema)
            if wrong:
                raise MalformedReplyError(f"The reply does not fit the schema: {wrong}.", text=self.text)
            yield Delta(text=self.text)
            yield from self.last
            return
        if not is_call or tool is None:
            raise MalformedReplyError("The reply is no call of a tool that is bound.", text=self.text)
        wrong = schemas.fault(value["arguments"], parameters_of(tool))
        if wrong:
            raise MalformedReplyError(f"The arguments for {name!r} do not fit its schema: {wrong}.", text=self.text)
        if not self.id:
            yield Delta(tool_calls=(_part(0, _new_id(), name_of(tool), json.dumps(value["arguments"])),))
        elif self.sent < (closing := self.text.rindex("}")):
            yield Delta(tool_calls=(_part(0, None, None, self.text[self.sent : closing]),))
        for delta in self.last:
            yield replace(delta, finish_reason="tool_calls") if delta.finish_reason else delta


def _spoken(text: str) -> list[dict[str, str]]:
    """The calls that stand in the text as Qwen's and Hermes' templates write them, or none where one is mangled."""
    calls = []
    for part in text.split(CALL)[1:]:
        value = _loads(part.partition(CALL_END)[0])
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return []
        arguments = value.get("arguments", value.get("parameters", {}))
        calls.append({"name": value["name"], "arguments": json.dumps(arguments, ensure_ascii=False), "id": ""})
    return calls


def _nothing(finish: str | None) -> MalformedReplyError:
    if finish == "length":
        return MalformedReplyError(
            "The model thought until its tokens were spent, and gave no answer.", hint="Raise max_tokens=."
        )
    return MalformedReplyError("The model gave neither text nor a tool call.")


def _split(delta: Delta) -> tuple[Delta | None, Delta | None]:
    """Part a delta into what is said now and what ends the reply."""
    ends = delta.finish_reason or delta.usage or delta.timings
    now = Delta(text=delta.text, reasoning=delta.reasoning, logprobs=delta.logprobs, tool_calls=delta.tool_calls)
    held = replace(delta, text="", reasoning="", logprobs=None, tool_calls=()) if ends else None
    return (now if delta.text or delta.reasoning or delta.logprobs or delta.tool_calls else None), held


def _finish(deltas: Sequence[Delta]) -> str | None:
    return next((delta.finish_reason for delta in deltas if delta.finish_reason), None)


def _json(text: str, last: Sequence[Delta]) -> Any:
    value = _loads(text)
    if value is None:
        if _finish(last) == "length":
            raise MalformedReplyError(
                "The answer was cut before its JSON was complete.",
                hint="Raise max_tokens= or context_length=, or bound the schema's strings and arrays.",
                text=text,
            )
        if not text.strip():
            raise MalformedReplyError("The answer is empty.", text=text)
        raise MalformedReplyError("The answer is not JSON.", text=text)
    return value


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _part(index: int, id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _new_id() -> str:
    return f"call_{uuid4().hex[:24]}"
