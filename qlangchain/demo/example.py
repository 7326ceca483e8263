"""One exercise of the demo model: a conversation whose assistant turns are to be learned."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A conversation; the last message is the assistant's. `kind` names the family it is measured in."""

    kind: str
    messages: list[Message]
    tools: list[Message] = field(default_factory=list)
    id: str = ""

    @property
    def answer(self) -> str:
        """The text of the last message, as it stands between the control tokens."""
        last = self.messages[-1]
        return str(last.get("content") or "") or "\n".join(call_text(call) for call in last["tool_calls"])


def user(text: str) -> Message:
    """Return a user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Return an assistant message."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """Return a system message."""
    return {"role": "system", "content": text}


def tool_result(text: str) -> Message:
    """Return a tool message."""
    return {"role": "tool", "content": text}


def calls(*pairs: tuple[str, dict[str, Any]]) -> Message:
    """Return an assistant message that calls tools, in the shape OpenAI uses."""
    functions = [{"type": "function", "function": {"name": name, "arguments": values}} for name, values in pairs]
    return {"role": "assistant", "content": "", "tool_calls": functions}


def call_text(call: Message) -> str:
    """Return a tool call as the chat template writes it."""
    function = call["function"]
    values = json.dumps(function["arguments"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {values}}}\n</tool_call>'
