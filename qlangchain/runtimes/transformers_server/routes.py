"""The HTTP side: the routes of llama.cpp's server that our client uses, with a key, refusals and cancelling."""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from qlangchain.runtimes.transformers_server.generation import Model, Piece, Request, TooLongError, thinks

_LARGEST: Final = 64 * 1024 * 1024  # bytes of a request
# What a request may hold beside what is used; anything else would be ignored in silence, so it is refused.
_IGNORED: Final = frozenset(("model", "stream", "stream_options", "cache_prompt", "tool_choice", "parallel_tool_calls"))
_SAMPLING: Final = frozenset(("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"))


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.answer = status, {"error": {"code": status, "message": message, **more}}


def application(model: Model, *, name: str, key: str) -> Starlette:
    """Return the server's application. Everything but /health asks for the key."""
    routes = _Routes(model, name, key)
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.models),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/apply-template", routes.apply_template, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/chat/completions/input_tokens", routes.count, methods=["POST"]),
            Route("/v1/completions", routes.complete, methods=["POST"]),
            Route("/completion", routes.constrained, methods=["POST"]),
        ],
        exception_handlers={
            _RefusedError: lambda _, error: JSONResponse(error.answer, error.status),
            Exception: lambda _, error: JSONResponse(_failure(error), 500),
        },
    )


class _Routes:
    def __init__(self, model: Model, name: str, key: str) -> None:
        self._model, self._name, self._key = model, name, key

    async def health(self, http: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, http: HttpRequest) -> Response:
        self._check_key(http)
        return JSONResponse({"object": "list", "data": [{"id": self._name, "object": "model"}]})

    async def tokenize(self, http: HttpRequest) -> Response:
        body = await self._body(http)
        text = _text(body, "content")
        return JSONResponse({"tokens": self._model.tokenize(text, special=bool(body.get("add_special")))})

    async def apply_template(self, http: HttpRequest) -> Response:
        return JSONResponse({"prompt": await self._rendered(await self._body(http))})

    async def count(self, http: HttpRequest) -> Response:
        prompt = await self._rendered(await self._body(http))
        return JSONResponse({"input_tokens": len(self._model.tokenize(prompt, special=False))})

    async def chat(self, http: HttpRequest) -> Response:
        body = await self._body(http)
        _only(body, _SAMPLING | {"messages", "tools", "chat_template_kwargs", "logprobs", "top_logprobs"})
        prompt = await self._rendered(body)
        ids = self._model.tokenize(prompt, special=False)
        wanted = int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
        request = self._request(body, ids, top_logprobs=wanted, thinks=thinks(prompt), splits_thoughts=True)
        return await self._answer(http, body, request, _chat_events(self._name, len(ids)))

    async def complete(self, http: HttpRequest) -> Response:
        body = await self._body(http)
        _only(body, _SAMPLING | {"prompt"})
        request = self._request(body, self._model.tokenize(_text(body, "prompt"), special=True))
        return await self._answer(http, body, request, _text_events(self._name, len(request.prompt)))

    async def constrained(self, http: HttpRequest) -> Response:
        body = await self._body(http)
        _only(body, _SAMPLING | {"prompt", "grammar"})
        # The prompt is a rendered template already: what it begins with is in it.
        ids = self._model.tokenize(_text(body, "prompt"), special=False)
        request = self._request(body, ids, grammar=body.get("grammar"))
        return await self._answer(http, body, request, _plain_events(len(ids)))

    def _check_key(self, http: HttpRequest) -> None:
        given = http.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            raise _RefusedError(401, "Invalid API key", type="authentication_error")

    async def _body(self, http: HttpRequest) -> dict[str, Any]:
        self._check_key(http)
        parts, size = [], 0
        async for part in http.stream():
            size += len(part)
            if size > _LARGEST:
                raise _RefusedError(413, "The request is too large.")
            parts.append(part)
        try:
            body = json.loads(b"".join(parts))
        except (ValueError, RecursionError) as error:
            raise _RefusedError(400, f"The request is not JSON: {error}.") from None
        if not isinstance(body, dict):
            raise _RefusedError(400, "The request is not a JSON object.")
        return body

    async def _rendered(self, body: Mapping[str, Any]) -> str:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _RefusedError(400, "messages must be a list that is not empty.")
        try:
            return await run_in_threadpool(
                self._model.render, messages, body.get("tools"), body.get("chat_template_kwargs") or {}
            )
        except Exception as error:  # a template may raise anything at messages that it does not know
            raise _RefusedError(400, f"The chat template does not take these messages: {error}") from None

    def _request(self, body: Mapping[str, Any], prompt: list[int], **more: Any) -> Request:
        stop = body.get("stop") or ()
        try:
            request = Request(
                prompt=prompt,
                max_tokens=_number(body, "max_tokens", int, 1),
                temperature=float(body.get("temperature", 1.0)),
                top_p=_number(body, "top_p", float, 0),
                top_k=_number(body, "top_k", int, 0),
                min_p=_number(body, "min_p", float, 0),
                seed=_number(body, "seed", int, 0),
                stop=tuple([stop] if isinstance(stop, str) else [str(s) for s in stop if s]),
                **more,
            )
        except (TypeError, ValueError) as error:
            raise _RefusedError(400, str(error)) from None
        try:
            self._model.admit(prompt)
        except TooLongError as error:
            raise _RefusedError(
                400, str(error), type="exceed_context_size_error", n_prompt_tokens=error.asked, n_ctx=error.context
            ) from None
        return request

    async def _answer(self, http: HttpRequest, body: Mapping[str, Any], request: Request, events: Any) -> Response:
        cancel = threading.Event()
        pieces = self._model.generate(request, cancel)
        # The first piece comes before the answer begins, so that what goes wrong at once has a status of its own.
        try:
            first = await run_in_threadpool(next, pieces)
        except ValueError as error:
            raise _RefusedError(400, str(error)) from None
        if not body.get("stream"):
            raise _RefusedError(400, "Only streams are given; pass stream=true.")
        return StreamingResponse(_stream(first, pieces, events, cancel), media_type="text/event-stream")


async def _stream(first: Piece, rest: Iterator[Piece], events: Any, cancel: threading.Event) -> AsyncIterator[bytes]:
    try:
        for event in events(first):
            yield _line(event)
        async for piece in iterate_in_threadpool(rest):
            for event in events(piece):
                yield _line(event)
        yield b"data: [DONE]\n\n"
    except Exception as error:  # the status is sent already: the error goes into the stream
        yield _line(_failure(error))
    finally:
        cancel.set()  # the client has gone, or all is said


def _line(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


def _failure(error: Exception) -> dict[str, Any]:
    return {"error": {"code": 500, "message": f"{type(error).__name__}: {error}", "type": "server_error"}}


def _chat_events(name: str, asked: int) -> Any:
    def events(piece: Piece) -> Iterator[dict[str, Any]]:
        said = {"content": piece.text, "reasoning_content": piece.reasoning}
        choice: dict[str, Any] = {
            "index": 0,
            "delta": {key: value for key, value in said.items() if value},
            "finish_reason": piece.finish,
        }
        if piece.logprobs:
            choice["logprobs"] = {"content": list(piece.logprobs)}
        yield {"object": "chat.completion.chunk", "model": name, "choices": [choice]}
        if piece.finish:
            yield {"object": "chat.completion.chunk", "model": name, "choices": [], "usage": _usage(asked, piece)}

    return events


def _text_events(name: str, asked: int) -> Any:
    def events(piece: Piece) -> Iterator[dict[str, Any]]:
        choice = {"index": 0, "text": piece.text, "finish_reason": piece.finish}
        yield {"object": "text_completion", "model": name, "choices": [choice]}
        if piece.finish:
            yield {"object": "text_completion", "model": name, "choices": [], "usage": _usage(asked, piece)}

    return events


def _plain_events(asked: int) -> Any:
    def events(piece: Piece) -> Iterator[dict[str, Any]]:
        if not piece.finish:
            yield {"content": piece.text, "stop": False}
            return
        kind = "limit" if piece.finish == "length" else "eos"
        yield {
            "content": "",
            "stop": True,
            "stop_type": kind,
            "tokens_evaluated": asked,
            "tokens_predicted": piece.tokens,
        }

    return events


def _usage(asked: int, piece: Piece) -> dict[str, int]:
    return {"prompt_tokens": asked, "completion_tokens": piece.tokens, "total_tokens": asked + piece.tokens}


def _only(body: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(set(body) - known - _IGNORED)
    if unknown:
        raise _RefusedError(400, f"This server does not know {', '.join(unknown)}.")
    if body.get("tool_choice") not in (None, "auto", "none"):
        raise _RefusedError(400, "This server does not force tools by tool_choice; pass a grammar to /completion.")


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise _RefusedError(400, f"{name} must be a string.")
    return value


def _number(body: Mapping[str, Any], name: str, kind: type, least: float) -> Any:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise ValueError(f"{name} must be a number of at least {least}.")
    return kind(value)
