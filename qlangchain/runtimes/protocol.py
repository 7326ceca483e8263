"""The OpenAI protocol as data: from a request to its JSON body, from a stream's events to deltas.

Pure functions and values; the client moves the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qlangchain.errors import (
    AuthenticationError,
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineFailedError,
    MalformedReplyError,
    PromptTooLongError,
    RequestRejectedError,
    UnsupportedRequestError,
)
from qlangchain.types import Capabilities

CHAT: Final = "/v1/chat/completions"
COMPLETION: Final = "/v1/completions"
CONSTRAINED: Final = "/completion"  # llama.cpp's own route: its grammar holds from the first character on

# The same setting under the name that vLLM has for it.
_SYNONYMS: Final = {"repeat_penalty": "repetition_penalty"}
# vLLM's server when its engine process has died under it; it ends itself within a second.
_ENGINE_DEAD: Final = ("EngineCore encountered an issue", "EngineDeadError")
# llama.cpp's server where its parser for the template's tool calls gives up, mostly at a call that is mangled.
_UNPARSED: Final = "The model produced output that does not match the expected"
# Servers that say it in words: llama.cpp for embeddings, OpenAI and vLLM, text-embeddings-inference.
_TOO_LONG: Final = re.compile(
    r"input \((?P<a>\d+) tokens\) is (?:too large to process|larger than).*?(?P<b>\d+)"
    r"|maximum (?:context|input) length is (?P<c>\d+) tokens.*?(?P<d>\d+) (?:input )?tokens"
    r"|must have less than (?P<e>\d+) tokens\. Given: (?P<f>\d+)",
    re.DOTALL,
)
_TOO_LONG_WORDS: Final = (
    *("exceed_context_size", "context_length_exceeded", "maximum context length"),
    *("input length exceeds the context length", "input is too large to process", "larger than the max context size"),
)


@dataclass(frozen=True, slots=True)
class Delta:
    """One event of a stream: new text, and near the end the finish reason, token counts and timings."""

    text: str = ""
    reasoning: str = ""
    logprobs: Mapping[str, Any] | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] | None = None
    model: str | None = None
    token_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class Transcript:
    """What a stream has said so far; it knows whether the stream ended as the protocol demands."""

    finish_reason: str | None = None
    events: int = 0
    parts: list[str] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Take in one event."""
        self.events += 1
        self.parts.append(delta.text)
        self.finish_reason = delta.finish_reason or self.finish_reason

    @property
    def partial(self) -> str:
        """The text received so far."""
        return "".join(self.parts)


def body(
    model: str,
    content: Mapping[str, Any],
    sampling: Mapping[str, Any],
    capabilities: Capabilities,
) -> dict[str, Any]:
    """Build the body of a streamed request.

    `content` is {"messages": [...]} or {"prompt": "..."}. Settings that are None are left to the server.

    Raises:
        UnsupportedRequestError: the server would silently ignore one of the settings.

    """
    chosen = {name: value for name, value in sampling.items() if value is not None and value != []}
    for ours, theirs in _SYNONYMS.items():
        if ours in chosen and ours not in capabilities.sampling and theirs in capabilities.sampling:
            chosen[theirs] = chosen.pop(ours)
    ignored = sorted(set(chosen) - capabilities.sampling)
    if ignored:
        raise UnsupportedRequestError(
            f"This server ignores {', '.join(ignored)}.",
            hint=f"Leave it out; it understands {', '.join(sorted(capabilities.sampling))}.",
        )
    request = {"model": model, **content, **chosen, "stream": True}
    if capabilities.usage_in_stream:
        request["stream_options"] = {"include_usage": True}
    return request


def parse(event: Mapping[str, Any]) -> Delta:
    """Read one event of a chat or completion stream.

    Raises:
        EngineError: the event reports an error, as servers do once the stream has begun.

    """
    if event.get("error") is not None:
        raise refusal(500, event)
    if "stop" in event and "choices" not in event:
        return _parse_constrained(event)
    try:
        choice = (event.get("choices") or [{}])[0]
        message = choice.get("delta") or {}
        delta = Delta(
            text=message.get("content") or choice.get("text") or "",
            reasoning=message.get("reasoning_content") or message.get("reasoning") or "",
            logprobs=choice.get("logprobs"),
            tool_calls=tuple(dict(call) for call in message.get("tool_calls") or ()),
            finish_reason=choice.get("finish_reason"),
            usage=dict(event.get("usage") or {}) or None,
            timings=dict(event.get("timings") or {}) or None,
            model=event.get("model"),
            token_ids=tuple(int(token) for token in choice.get("token_ids") or ()),
        )
        if not isinstance(delta.text, str):
            raise TypeError("text")
    except (AttributeError, KeyError, TypeError, ValueError):
        raise EngineFailedError(
            "The server sent an event that is not what the OpenAI protocol says.",
            hint="Is this the URL of an OpenAI-compatible server?",
        ) from None
    return delta


def _parse_constrained(event: Mapping[str, Any]) -> Delta:
    """Read one event of llama.cpp's own completion route."""
    text = str(event.get("content") or "")
    if not event["stop"]:
        return Delta(text=text)
    asked, said = event.get("tokens_evaluated"), event.get("tokens_predicted")
    return Delta(
        text=text,
        finish_reason="length" if event.get("stop_type") == "limit" else "stop",
        usage={"prompt_tokens": asked, "completion_tokens": said} if isinstance(asked, int) else None,
        timings=event.get("timings") if isinstance(event.get("timings"), dict) else None,
    )


def refusal(status: int, answer: Any) -> EngineError:
    """Turn an error answer (its HTTP status and parsed JSON, or text) into the error to raise."""
    detail = answer.get("error", answer) if isinstance(answer, Mapping) else answer
    fields: Mapping[str, Any] = detail if isinstance(detail, Mapping) else {}
    said = str(fields.get("message") or fields.get("detail") or detail or "no reason given").strip()[:2000]
    code = fields.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else status
    kind = f"{fields.get('type', '')} {code}"
    named = _TOO_LONG.search(said)
    if named or any(word in f"{kind} {said}" for word in _TOO_LONG_WORDS):
        asked, there = fields.get("n_prompt_tokens"), fields.get("n_ctx")
        if named and not (asked and there):
            small, large = sorted(int(number) for number in named.groups() if number)
            asked, there = large, small
        numbers = f" ({asked} tokens asked, {there} available)" if asked and there else ""
        return PromptTooLongError(
            f"The prompt does not fit the context{numbers}.", prompt_tokens=asked, context_length=there
        )
    if status in (401, 403):
        return AuthenticationError(f"The server refused the key: {said}.")
    if status in (429, 503):
        return EngineBusyError(f"The server is busy: {said}.")
    if any(words in said for words in _ENGINE_DEAD):
        return EngineDiedError(f"The server's engine has died: {said}")
    if _UNPARSED in said:
        return MalformedReplyError(f"The server cannot read the model's reply as a tool call: {said}")
    if status >= 500:
        return EngineFailedError(f"The server failed (HTTP {status}): {said}.")
    return RequestRejectedError(f"The server refused the request (HTTP {status}): {said}.")
