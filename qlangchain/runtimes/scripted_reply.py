"""What the scripted server is asked and what it says: requests, replies, and the limits that a server puts on them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from qlangchain.runtimes import scripted_tokens as tokens
from qlangchain.runtimes.protocol import CHAT, CONSTRAINED

_ALTERNATIVES: Final = [f" {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
_MOST_ALTERNATIVES: Final = 20  # what llama.cpp lists where `top_logprobs` says nothing


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came: `body` is its JSON, and the properties read what tests ask for most."""

    path: str
    body: Mapping[str, Any]

    @property
    def is_chat(self) -> bool:
        """Whether it came as messages, and not as a prompt."""
        return self.path == CHAT

    @property
    def prompt(self) -> str:
        """The whole prompt as a model would see it: rendered from the messages, or as it came."""
        if self.is_chat:
            tools = () if self.tool_choice == "none" else self.body.get("tools") or ()
            return tokens.render(self.body.get("messages") or (), tools)
        prompt = self.body.get("prompt")
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return tokens.detokenize(prompt)
        return str(prompt[0] if isinstance(prompt, list) and prompt else prompt or "")

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages in the protocol's form, also those that a client has rendered with our template."""
        return list(self.body.get("messages") or ()) if self.is_chat else tokens.read(self.prompt)[0]

    @property
    def text(self) -> str:
        """What the user said last: the text of the last user message, or a bare prompt."""
        messages = self.messages
        if not messages:
            return "" if self.is_chat else self.prompt
        asked = [message for message in messages if message.get("role") == "user"]
        return tokens.content_text((asked or messages)[-1].get("content"))

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The functions that may be called: dictionaries with name, description and parameters."""
        offered = self.body.get("tools") or () if self.is_chat else tokens.read(self.prompt)[1]
        return [tool["function"] for tool in offered]

    @property
    def tool_choice(self) -> str:
        """Return "auto", "required" or "none"; an object is read as "auto", which is what llama.cpp does."""
        choice = self.body.get("tool_choice")
        return choice if isinstance(choice, str) else "auto"

    @property
    def schema(self) -> Any:
        """The JSON schema that the answer must have; {"type": "object"} where any object will do; or None."""
        wanted = self.body.get("response_format") or {}
        if wanted.get("type") == "json_schema":
            return (wanted.get("json_schema") or {}).get("schema", {})
        if wanted.get("type") == "json_object":
            return wanted.get("schema") or {"type": "object"}
        return self.body.get("json_schema")

    @property
    def stop(self) -> list[str]:
        """Where the answer must stop."""
        stop = self.body.get("stop") or []
        return [stop] if isinstance(stop, str) else list(stop)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of the answer; None where only the context limits it."""
        for name in ("max_completion_tokens", "max_tokens", "n_predict"):
            limit = self.body.get(name)
            if isinstance(limit, int) and limit >= 0:
                return max(1, limit)
        return None

    @property
    def logprobs(self) -> int | None:
        """How many alternatives of each token are asked for; None where no probabilities are."""
        asked = self.body.get("n_probs" if self.path == CONSTRAINED else "logprobs")
        if self.is_chat:
            return int(self.body.get("top_logprobs", _MOST_ALTERNATIVES)) if asked else None
        return int(asked) if asked else None

    @property
    def fingerprint(self) -> str:
        """A hash of the request, in hex: ids are made of it, so that equal requests get equal answers."""
        return hashlib.sha256(json.dumps([self.path, self.body], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, or one fault.

    Args:
        text: the answer, given in tokens where it is streamed. The request's stop and max_tokens cut it.
        tool_calls: calls as {"name": "add", "args": {"a": 1}}; args may be a string, to send broken JSON. "id"
            is optional. Where there are no messages, as behind a grammar for calls, they are said as JSON.
        finish_reason: what the server says in place of "stop", "length" or "tool_calls".
        usage: what it says in place of the token counts.
        reasoning: what a thinking model says before its answer.
        delay: seconds of silence before each event of a stream, or before an answer that is not streamed.
        die_after: the connection is reset after so many pieces of the answer (what was sent before it is still
            read, at least on Linux). An answer that is not streamed is not begun.
        status: an HTTP error in place of the answer, such as 503.
        error: its message, or its whole JSON object. Without a status it is an event after the text, which is
            how servers report what goes wrong once a stream has begun.

    """

    text: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    reasoning: str = ""
    delay: float = 0.0
    die_after: int | None = None
    status: int | None = None
    error: str | Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply within the limits of its request: what is said, in tokens, and why it ended there."""

    request: Request
    model: str
    reasoning: tuple[str, ...]
    text: tuple[str, ...]
    calls: tuple[Mapping[str, Any], ...]  # in the protocol's form
    finish_reason: str
    usage: Mapping[str, Any]

    def deltas(self) -> Iterator[dict[str, Any]]:
        """Yield the parts of a streamed chat message, one token each, and with them their probabilities."""
        for piece in self.reasoning:
            yield {"delta": {"reasoning_content": piece}}
        for position, piece in enumerate(self.text):
            wanted = self.request.logprobs
            odds = {} if wanted is None else {"logprobs": {"content": [_odds(piece, position, wanted)]}}
            yield {"delta": {"content": piece}, **odds}
        for index, call in enumerate(self.calls):
            function = call["function"]
            head = {"index": index, **call, "function": {"name": function["name"], "arguments": ""}}
            yield {"delta": {"tool_calls": [head]}}
            for piece in tokens.pieces(function["arguments"]):
                yield {"delta": {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}}

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events of the stream, from the assistant's role to the token counts."""
        if self.request.path == CONSTRAINED:
            yield from self._native_events()
            return
        counts = self._counts()
        if not self.request.is_chat:
            for part in self.deltas():
                yield self._event({"text": part["delta"]["content"], "logprobs": part.get("logprobs")}, None)
            yield self._event({"text": "", "logprobs": None}, self.finish_reason) | counts
            return
        yield self._event({"delta": {"role": "assistant", "content": None}}, None)
        for part in self.deltas():
            yield self._event(part, None)
        if (self.request.body.get("stream_options") or {}).get("include_usage"):
            yield self._event({"delta": {}}, self.finish_reason)
            yield {**self._event({}, None), "choices": []} | counts
        else:
            yield self._event({"delta": {}}, self.finish_reason) | {"timings": counts["timings"]}

    def _native_events(self) -> Iterator[dict[str, Any]]:
        for said, part in enumerate(self.deltas(), 1):
            piece = part["delta"]["content"]
            odds = {"completion_probabilities": part["logprobs"]["content"]} if "logprobs" in part else {}
            event = {"index": 0, "content": piece, "tokens": tokens.tokenize(piece), "stop": False, **odds}
            yield event | {"tokens_predicted": said, "tokens_evaluated": self.usage.get("prompt_tokens")}
        yield self._native("")

    def _native(self, text: str) -> dict[str, Any]:
        """Return the end of an answer of llama.cpp's own route, or the whole of it."""
        return {
            "index": 0,
            "content": text,
            "tokens": [],
            "stop": True,
            "stop_type": "limit" if self.finish_reason == "length" else "eos",
            "model": self.model,
            "prompt": self.request.prompt,
            "tokens_predicted": self.usage.get("completion_tokens"),
            "tokens_evaluated": self.usage.get("prompt_tokens"),
            "truncated": False,
            "timings": _timings(self.usage),
        }

    def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""
        text = "".join(self.text)
        if self.request.path == CONSTRAINED:
            return self._native(text)
        wanted = self.request.logprobs
        odds = None if wanted is None else {"content": [_odds(p, i, wanted) for i, p in enumerate(self.text)]}
        if self.request.is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": text or (None if self.calls else "")}
            if self.reasoning:
                message["reasoning_content"] = "".join(self.reasoning)
            if self.calls:
                message["tool_calls"] = list(self.calls)
            choice: dict[str, Any] = {"message": message} if odds is None else {"message": message, "logprobs": odds}
        else:
            choice = {"text": text, "logprobs": odds}
        kind = "chat.completion" if self.request.is_chat else "text_completion"
        return self._event(choice, self.finish_reason) | {"object": kind} | self._counts()

    def _event(self, choice: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
        return {
            "choices": [{"finish_reason": finish, "index": 0, **choice}],
            "created": 0,  # a clock would make equal requests differ
            "id": f"chatcmpl-{self.request.fingerprint[:32]}",
            "model": self.model,
            "system_fingerprint": "scripted",
            "object": "chat.completion.chunk" if self.request.is_chat else "text_completion",
        }

    def _counts(self) -> dict[str, Any]:
        return {"usage": dict(self.usage), "timings": _timings(self.usage)}


def finish(reply: Reply, request: Request, *, model: str, room: int) -> Answer:
    """Hold the reply to the request's stop and max_tokens, and to the `room` that the context has left."""
    if not request.is_chat:
        reply = replace(reply, text=reply.text + _calls_as_text(reply, request), tool_calls=(), reasoning="")
    cut = min((at for stop in request.stop if stop and (at := reply.text.find(stop)) >= 0), default=len(reply.text))
    left = min(room, request.max_tokens or room)
    asked = left
    said: list[tuple[str, ...]] = []
    wanted = 0
    for text in (reply.reasoning, reply.text[:cut]):
        found = tokens.pieces(text)
        wanted += len(found)
        said.append(tuple(found[: max(0, left)]))
        left -= len(found)
    calls: list[Mapping[str, Any]] = []
    for index, call in enumerate(reply.tool_calls):
        name, arguments, identity = _call(call, f"{request.fingerprint[:24]}{index}")
        found = tokens.pieces(arguments)
        cost = len(tokens.pieces(name))
        wanted += cost + len(found)
        left -= cost
        if left >= 0:
            shown = "".join(found[:left])
            function = {"name": name, "arguments": shown}
            calls.append({"type": "function", "id": identity, "function": function})
        left -= len(found)
    reason = "length" if wanted > asked else "tool_calls" if reply.tool_calls else "stop"
    prompt, answer = len(tokens.pieces(request.prompt)), min(wanted, asked)
    usage = reply.usage or {
        "completion_tokens": answer,
        "prompt_tokens": prompt,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    return Answer(
        request=request,
        model=model,
        reasoning=said[0],
        text=said[1],
        calls=tuple(calls),
        finish_reason=reply.finish_reason or reason,
        usage=usage,
    )


def _calls_as_text(reply: Reply, request: Request) -> str:
    """Write calls as a model writes them; a grammar allows one."""
    calls = [_call(call, "")[:2] for call in reply.tool_calls]
    written = [f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}' for name, arguments in calls]
    return "\n".join(written[:1] if request.schema is not None else written)


def _call(call: Mapping[str, Any], identity: str) -> tuple[str, str, str]:
    """Read a call's name, arguments (as JSON) and id, in LangChain's form or in the protocol's."""
    function = call.get("function", call)
    arguments = function.get("args", function.get("arguments", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return str(function["name"]), arguments, str(call.get("id") or f"call_{identity}")


def _odds(piece: str, position: int, count: int) -> dict[str, Any]:
    """Return a token's probability, between 0.5 and 1, and those of `count` tokens, itself among them."""
    digest = hashlib.sha256(f"{position}:{piece}".encode("utf-8", "surrogatepass")).digest()
    chance = 0.5 + digest[0] / 513
    rest = (other for other in _ALTERNATIVES if other != piece)
    ranked = [(piece, chance)] + [(other, (1 - chance) / 2 ** (rank + 1)) for rank, other in enumerate(rest)]
    entries = [
        {
            "id": tokens.tokenize(text)[0],
            "token": text,
            "bytes": list(text.encode("utf-8", "replace")),
            "logprob": round(math.log(probability), 6),
        }
        for text, probability in ranked[: max(1, min(count, _MOST_ALTERNATIVES))]
    ]
    return {**entries[0], "top_logprobs": entries[:count]}


def _timings(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the times of an engine that would take a millisecond for each token, read or written."""
    asked, said = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    return {
        "cache_n": 0,
        "prompt_n": asked,
        "prompt_ms": float(asked),
        "prompt_per_token_ms": 1.0,
        "prompt_per_second": 1000.0,
        "predicted_n": said,
        "predicted_ms": float(said),
        "predicted_per_token_ms": 1.0,
        "predicted_per_second": 1000.0,
    }
