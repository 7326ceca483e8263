"""One HTTP client for every engine: streamed requests in the OpenAI protocol, sync and async.

Requests are always streamed, even for callers who want the whole answer: a closed stream stops the engine
within a decode step, while a request without a stream goes on to be computed for nobody
(llama.cpp notices the closed connection only when it has been idle for a second).

The client knows HTTP. What the events mean is `protocol.py`'s business.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx
import httpx_sse

from qlangchain.errors import (
    EngineDiedError,
    EngineError,
    EngineTimeoutError,
    InvalidInputError,
    NotConnectedError,
    RequestRejectedError,
)
from qlangchain.runtimes import preflight, protocol
from qlangchain.runtimes.protocol import Delta, Transcript
from qlangchain.runtimes.templates import Ask
from qlangchain.types import Endpoint

T = TypeVar("T")

_CONNECT_SECONDS: Final = 10.0
_LONGEST: Final = 1e6  # seconds; sockets cannot wait longer than 24 days
_MAX_EVENT: Final = 16 * 1024 * 1024  # characters; no engine sends more in one event
_NO_SERVER: Final = "Is this the URL of an OpenAI-compatible server?"


class Client:
    """Talks to one endpoint. Cheap to make, safe to share between threads and event loops."""

    def __init__(self, endpoint: Endpoint, *, timeout: float | None = None) -> None:
        """`timeout` is in seconds for a whole answer; None waits as long as the engine lives."""
        self.endpoint = endpoint
        self._timeout = None if timeout is None else min(timeout, _LONGEST)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Delta]:
        """Send a request and yield its deltas as they come; closing the iterator stops the engine.

        Raises:
            NotConnectedError: nothing listens there.
            EngineDiedError: the connection broke, or ended without a finish reason.
            EngineTimeoutError: the answer took longer than the timeout.
            EngineError: the server refused or failed; see `protocol.refusal`.

        """
        reader = _Reader(self.endpoint, self._timeout)
        with reader.mapped_errors(), self._sync() as http:
            body = _asked(http, preflight.steps(self.endpoint, path, body), reader)
            with httpx_sse.connect_sse(http, "POST", path, json=body) as source:
                source.response.stream = _Timed(source.response.stream, reader)
                if source.response.is_error:
                    raise _refused(source.response.status_code, source.response.read())
                for event in source.iter_sse():
                    yield from reader.read(event.data)
                    if reader.done:
                        return
                reader.ended()

    async def astream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Delta]:
        """Do what `stream` does, in an event loop of any kind that httpx supports."""
        reader = _Reader(self.endpoint, self._timeout)
        with reader.mapped_errors():
            async with self._async() as http:
                with contextlib.closing(preflight.steps(self.endpoint, path, body)) as steps:
                    try:
                        ask = next(steps)
                        with reader.greeting():
                            response = await http.request(*ask[:2], json=ask[2])
                        while True:
                            ask = _next(steps, response)
                            response = await http.request(*ask[:2], json=ask[2])
                    except StopIteration as ready:
                        body = ready.value
                async with httpx_sse.aconnect_sse(http, "POST", path, json=body) as source:
                    source.response.stream = _Timed(source.response.stream, reader)
                    if source.response.is_error:
                        raise _refused(source.response.status_code, await source.response.aread())
                    async for event in source.aiter_sse():
                        for delta in reader.read(event.data):
                            yield delta
                        if reader.done:
                            return
                    reader.ended()

    def count(self, path: str, body: Mapping[str, Any]) -> int | None:
        """Return how many tokens the prompt of a request to `path` takes; None where the server does not say it."""
        reader = _Reader(self.endpoint, self._timeout)
        with reader.mapped_errors(), self._sync() as http:
            return _asked(http, preflight.counting(self.endpoint, path, body), reader)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request that is not streamed and return its JSON."""
        reader = _Reader(self.endpoint, self._timeout)
        with reader.mapped_errors(), self._sync() as http:
            if self.endpoint.greeting and method == "POST":
                with reader.greeting():
                    http.get(self.endpoint.greeting)
            return self._json(path, http.request(method, path, json=body))

    async def acall(self, method: str, path: str, body: Any = None) -> Any:
        """Do what `call` does, in an event loop of any kind that httpx supports."""
        reader = _Reader(self.endpoint, self._timeout)
        with reader.mapped_errors():
            async with self._async() as http:
                if self.endpoint.greeting and method == "POST":
                    with reader.greeting():
                        await http.get(self.endpoint.greeting)
                return self._json(path, await http.request(method, path, json=body))

    def _json(self, path: str, response: httpx.Response) -> Any:
        if response.is_error:
            raise _refused(response.status_code, response.content)
        try:
            return response.json()
        except (ValueError, RecursionError):
            raise RequestRejectedError(
                f"{self.endpoint.base_url}{path} answered with something that is not JSON.", hint=_NO_SERVER
            ) from None

    def _sync(self) -> httpx.Client:
        return httpx.Client(**self._options())

    def _async(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(**self._options())

    def _options(self) -> dict[str, Any]:
        key = self.endpoint.api_key
        if key and not (key.isascii() and key.isprintable()):  # httpx would show the key in its error
            raise InvalidInputError(
                "The API key holds characters that cannot be sent.", hint="Does it end in a line end, or is it a path?"
            )
        secure = urlsplit(self.endpoint.base_url).scheme == "https"
        return {
            "base_url": self.endpoint.base_url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            # Nothing is read for as long as a prompt is being processed, so only connecting has a short limit.
            "timeout": httpx.Timeout(self._timeout, connect=_CONNECT_SECONDS),
            # A proxy from the environment has no business between us and a loopback server.
            "trust_env": False,
            "verify": _tls() if secure else False,
        }


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    # Reading the certificates takes tens of milliseconds: once per process, and not at all for plain HTTP.
    return httpx.create_ssl_context(trust_env=False)


class _Reader:
    """Reads one answer: parses its events, knows when it has ended, and maps what can go wrong."""

    def __init__(self, endpoint: Endpoint, timeout: float | None) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._transcript = Transcript()
        self.done = False

    def read(self, data: str) -> Iterator[Delta]:
        """Yield the delta of one event, or set `done` at the protocol's end mark."""
        if data == "[DONE]":
            self.ended()
            self.done = True
            return
        if not data:  # an event without data, such as a ping, says nothing
            return
        try:
            event = json.loads(data) if len(data) <= _MAX_EVENT else None
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise EngineDiedError("The server sent an event that is not JSON.", partial=self._transcript.partial)
        delta = protocol.parse(event)
        self._transcript.add(delta)
        yield delta

    def check_time(self) -> None:
        """Raise where the whole answer has taken longer than the timeout."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise httpx.ReadTimeout("deadline")

    def ended(self) -> None:
        """Check that a stream that is over said why it is over: a cut connection looks the same otherwise."""
        if self._transcript.finish_reason is None:
            raise EngineDiedError(
                f"The answer from {self._endpoint.base_url} ended in the middle.", partial=self._transcript.partial
            )

    @contextlib.contextmanager
    def greeting(self) -> Iterator[None]:
        """Take any failure to answer a greeting for what it is: the request has not begun."""
        try:
            yield
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            raise  # it lives, and is too slow
        except httpx.HTTPError as error:
            raise NotConnectedError(f"Nothing answers at {self._endpoint.base_url}: {error!r}.") from error

    @contextlib.contextmanager
    def mapped_errors(self) -> Iterator[None]:
        """Turn every error of httpx into one of ours."""
        where = self._endpoint.base_url
        try:
            yield
        except EngineError as error:
            key = self._endpoint.api_key
            if key and len(key) > 7 and key in error.message:  # servers quote the key that they refuse
                error.message = error.message.replace(key, "***")
                error.args = (error.message,)
            raise
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NotConnectedError(f"Nothing answers at {where}: {error}.") from error
        except httpx.TimeoutException as error:
            raise EngineTimeoutError(f"No complete answer from {where} within {self._timeout} seconds.") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise RequestRejectedError(
                f"{where!r} is not a URL that can be called: {error}.", hint="Pass endpoint='http://host:port'."
            ) from error
        except httpx_sse.SSEError as error:
            raise RequestRejectedError(
                f"{where} answered with something that is not a stream of events.", hint=_NO_SERVER
            ) from error
        except UnicodeEncodeError as error:
            raise InvalidInputError(
                "The request holds text that is not Unicode (half of a surrogate pair).",
                hint="Decode it with errors='replace' where it is read.",
            ) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise EngineDiedError(
                f"The connection to {where} broke during the call ({type(error).__name__}: {error}).",
                partial=self._transcript.partial,
            ) from error


class _Timed(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The bytes of an answer with a look at the clock: what only keeps the connection alive is no event."""

    def __init__(self, stream: Any, reader: _Reader) -> None:
        self._stream = stream
        self._reader = reader

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._reader.check_time()
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._reader.check_time()
            yield chunk

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _asked(http: httpx.Client, steps: Generator[Ask, Any, T], reader: _Reader) -> T:
    """Ask the server what `steps` wants to know, one after the other, and return what comes of it."""
    with contextlib.closing(steps):
        try:
            ask = next(steps)
            with reader.greeting():
                response = http.request(*ask[:2], json=ask[2])
            while True:
                ask = _next(steps, response)
                response = http.request(*ask[:2], json=ask[2])
        except StopIteration as ready:
            result: T = ready.value
            return result


def _next(steps: Generator[Ask, Any, Any], response: httpx.Response) -> Ask:
    """Hand on the answer to what was asked before the request, or its refusal, and return what is asked next."""
    try:
        answer = _answer(response)
    except EngineError as error:
        return steps.throw(error)
    return steps.send(answer)


def _answer(response: httpx.Response) -> Any:
    """The parsed answer to what was asked before the request; None where the server has no such route."""
    if response.status_code in (404, 405, 501):
        return None
    if response.is_error:
        raise _refused(response.status_code, response.content)
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _refused(status: int, content: bytes) -> EngineError:
    try:
        answer: Any = json.loads(content)
    except (ValueError, RecursionError):
        answer = content[:2000].decode(errors="replace")
    return protocol.refusal(status, answer)
