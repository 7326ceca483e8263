"""What the scripted server refuses, in llama.cpp's words and with its HTTP status."""

from __future__ import annotations

import json
from typing import Any, Final

from qlangchain.runtimes.protocol import CHAT
from qlangchain.runtimes.scripted_reply import Request

_KINDS: Final = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
                 429: "rate_limit_error", 501: "not_supported_error", 503: "unavailable_error"}  # fmt: skip


class Refusal(Exception):  # noqa: N818 - what a server says, not what is wrong with it
    """An HTTP error in llama.cpp's form."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.answer = {
            "error": {"code": status, "message": message, "type": _KINDS.get(status, "server_error"), **more}
        }


def parsed(content: bytes) -> dict[str, Any]:
    """Read the body of a request."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"parse error: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "the request is not a JSON object")
    return body


def checked(request: Request) -> Request:
    """Refuse what llama.cpp refuses."""
    body = request.body
    if request.path == CHAT:
        _check_messages(body.get("messages"))
        choice = body.get("tool_choice")
        if isinstance(choice, str) and choice not in ("auto", "none", "required"):
            raise Refusal(400, f"Invalid tool_choice: {choice}")
        for tool in body.get("tools") or ():
            if not isinstance(tool, dict) or not isinstance((tool.get("function") or {}).get("name"), str):
                raise Refusal(400, "Missing tool function name")
        if body.get("top_logprobs") and not body.get("logprobs"):
            raise Refusal(400, "top_logprobs requires logprobs to be set to true")
    elif isinstance(body.get("prompt"), list) and len(body["prompt"]) > 1 and not isinstance(body["prompt"][0], int):
        raise Refusal(400, "the scripted server takes one prompt per request")
    elif "prompt" not in body:
        raise Refusal(400, "'prompt' is required")
    kind = (body.get("response_format") or {}).get("type", "text")
    if kind not in ("text", "json_object", "json_schema"):
        raise Refusal(400, f'response_format type must be one of "text" or "json_object", but got: {kind}')
    if (body.get("n") or 1) > 1:
        raise Refusal(400, "n_cmpl cannot be greater than the number of slots, please increase -np")
    return request


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise Refusal(400, "'messages' is required" if messages is None else "Expected 'messages' to be an array")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refusal(400, "Missing 'role' in message")
        if not isinstance(message.get("content"), (str, list)) and not message.get("tool_calls"):
            raise Refusal(400, "Expected 'content' to be a string or an array")
