"""What a llama.cpp or vLLM server is asked before the request itself, on the same connection.

- The prompt's length, so that what does not fit is refused with the numbers and nothing is cut.
- What the chat template leaves out or refuses, so that messages and tools reach the model: see `templates`.
- For a reply that must fit a schema, the rendered prompt: llama.cpp's chat route parses replies by the template's
  tool format, which fails on some that its own grammar allows; its completion route takes the text as it is.
  vLLM's chat route holds to a schema by itself, once it is told that the reply is no tool call of its own kind.

The first answer also proves that the server lives. Without I/O: `steps` yields requests and is sent the
answers, or is thrown the server's refusal, so that the sync and the async client drive the same code.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, Final

from qlangchain.errors import EngineFailedError, PromptTooLongError
from qlangchain.runtimes.protocol import COMPLETION, CONSTRAINED
from qlangchain.runtimes.templates import CALL, TEMPLATE, Ask, fitted
from qlangchain.types import Capabilities, Endpoint

COUNT: Final = "/v1/chat/completions/input_tokens"
TOKENIZE: Final = "/tokenize"

Steps = Generator[Ask, Any, Mapping[str, Any]]  # is sent parsed answers (None: no such route), returns the body

# llguidance: no free whitespace, in which a weak model can lose itself, and no error for what it cannot enforce,
# since the reply is validated afterwards. Other grammars ignore the key.
_GUIDANCE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}


def steps(endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> Steps:
    """Yield what is to be asked first, and return the body to send then.

    Raises PromptTooLongError where prompt and answer do not fit the context.
    """
    body = yield from _suited(endpoint, body)
    if path == CONSTRAINED:
        answer = yield "POST", TEMPLATE, _template_request(body)
        body = _constrained(body, _prompt(answer), endpoint)
    elif "schema" in body:
        body = _constrained_chat(body, endpoint)
    if not (endpoint.capabilities.counts_tokens and endpoint.context_length):
        if endpoint.greeting and path != CONSTRAINED:
            yield "GET", endpoint.greeting, None
        return body
    answer = yield ("POST", *count_request(path, body, endpoint.capabilities))
    asked = counted(answer)
    if asked is not None:  # an older server may not be able to count; it still refuses what is too long by itself
        admit(asked, endpoint.context_length, body.get("max_tokens"))
        if endpoint.capabilities.tokenizes_chat and path == COMPLETION and not body.get("max_tokens"):
            # vLLM stops a completion after 16 tokens unless it is told a number (OpenAI's default for this route).
            return {**body, "max_tokens": endpoint.context_length - asked}
    return body


def counting(endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> Generator[Ask, Any, int | None]:
    """Yield what is to be asked, and return how many tokens the prompt of this request takes (None: not known)."""
    body = yield from _suited(endpoint, body)
    answer = yield ("POST", *count_request(path, body, endpoint.capabilities))
    return counted(answer)


def _suited(endpoint: Endpoint, body: Mapping[str, Any]) -> Steps:
    """The request as the chat template takes it, where the server shows what its template does."""
    server = endpoint.capabilities
    if "messages" in body and server.json_schema and not server.chat_schema:
        return (yield from fitted(endpoint, body))
    return body


def admit(asked: int, context_length: int, max_tokens: int | None) -> None:
    """Refuse a prompt that leaves too little of the context for the answer.

    Without `max_tokens` one token is reserved: the answer may use whatever is left.
    """
    reserved = max_tokens or 1
    if asked + reserved > context_length:
        raise PromptTooLongError(
            f"The prompt takes {asked} tokens and {reserved} are reserved for the answer; "
            f"the context has {context_length}.",
            hint="Shorten the prompt, lower max_tokens=, or raise context_length= where the model allows it.",
            prompt_tokens=asked,
            context_length=context_length,
            reserved_tokens=reserved,
        )


def _template_request(body: Mapping[str, Any]) -> dict[str, Any]:
    # Thinking first would be text outside the schema.
    request = {"messages": body["messages"], "chat_template_kwargs": {"enable_thinking": False}}
    return {**request, "tools": body["tools"]} if body.get("tools") else request


def _prompt(answer: Any) -> str:
    prompt = answer.get("prompt") if isinstance(answer, Mapping) else None
    if not isinstance(prompt, str):
        raise EngineFailedError("The server does not render chat templates.", hint="Use a newer llama.cpp.")
    return prompt


def _constrained(body: Mapping[str, Any], prompt: str, endpoint: Endpoint) -> dict[str, Any]:
    rest = {name: value for name, value in body.items() if name not in ("messages", "tools", "schema", "calls_only")}
    if prompt.rstrip().endswith("<think>"):
        prompt = f"{prompt.rstrip()}\n\n</think>\n\n"
    if body.get("calls_only") and CALL in prompt:
        prompt += f"{CALL}\n"  # where the model itself would begin a call
    if not endpoint.capabilities.llguidance:
        return {**rest, "prompt": prompt, "json_schema": {**body["schema"], "x-guidance": _GUIDANCE}}
    return {**rest, "prompt": prompt, "grammar": _grammar(body["schema"])}


def _grammar(schema: Mapping[str, Any]) -> str:
    # Many tokenizers have one token for the last braces and a line end. Where the grammar forbids the line end, a
    # model that would close the object here cannot, and goes on with digits instead.
    value = json.dumps({**_with_patterns(schema), "x-guidance": _GUIDANCE})
    return f'%llguidance {{}}\nstart: value END?\nvalue: %json {value}\nEND: "\\n"\n'


def _with_patterns(schema: Any) -> Any:
    """Say by a pattern how long a free key may be: llguidance passes over `propertyNames`."""
    if isinstance(schema, list):
        return [_with_patterns(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {name: _with_patterns(part) for name, part in schema.items()}
    names = found.get("propertyNames")
    if found.get("type") == "object" and isinstance(names, dict) and set(names) == {"maxLength"}:
        del found["propertyNames"]
        key = f'^[^"\\\\]{{1,{names["maxLength"]}}}$'
        found |= {"patternProperties": {key: found["additionalProperties"]}, "additionalProperties": False}
    return found


def _constrained_chat(body: Mapping[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """The body for a chat route that holds to a schema: vLLM's `structured_outputs`, or the protocol's own form."""
    rest = {name: value for name, value in body.items() if name not in ("schema", "calls_only")}
    if rest.get("tools"):
        rest["tool_choice"] = "none"  # the template still shows the tools; the text is left as it is
    rest["chat_template_kwargs"] = {"enable_thinking": False}  # thinking first would be text outside the schema
    if endpoint.capabilities.llguidance:
        return {**rest, "structured_outputs": {"grammar": _grammar(body["schema"])}}
    form = {"name": "reply", "strict": True, "schema": body["schema"]}
    return {**rest, "response_format": {"type": "json_schema", "json_schema": form}}


def count_request(path: str, body: Mapping[str, Any], server: Capabilities) -> tuple[str, dict[str, Any]]:
    """Return the route and the body that ask how many tokens the prompt of a request to `path` takes."""
    if server.tokenizes_chat:
        asks = ("model", "messages", "tools", "prompt", "chat_template_kwargs")
        return TOKENIZE, {name: body[name] for name in asks if name in body}
    if path in (COMPLETION, CONSTRAINED):
        return TOKENIZE, {"content": body["prompt"], "add_special": True, "parse_special": True}
    return COUNT, {name: body[name] for name in ("messages", "tools") if name in body}


def counted(answer: Any) -> int | None:
    """Read the answer to that; None where it is no count."""
    if not isinstance(answer, Mapping):
        return None
    tokens = answer.get("tokens")
    count = len(tokens) if isinstance(tokens, list) else answer.get("input_tokens", answer.get("count"))
    return count if isinstance(count, int) else None
