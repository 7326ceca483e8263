"""A small HTTP server on loopback that plays what real servers do on bad days, byte by byte.

Each request takes the next play of the list (the last one is played again and again). A play is a function of
the connection; those below write a good stream, an error, or half of either.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 10.0  # seconds that a play waits for something that must happen; only a failing test waits so long


@dataclass(frozen=True)
class Request:
    """One request as it came: headers with names in small letters."""

    method: str
    path: str
    headers: dict[str, str]
    raw_body: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw_body)


class Connection:
    """What a play writes to."""

    def __init__(self, socket: socket.socket, server: FaultServer) -> None:
        self.socket = socket
        self.server = server

    def send(self, *texts: str | bytes) -> None:
        for text in texts:
            self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: object) -> None:
        lines = [f"HTTP/1.1 {status} Played", f"Content-Type: {content_type}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines) + "\r\n\r\n")

    def events(self, *events: Any) -> None:
        """Write events: a string as it is, anything else as JSON."""
        for event in events:
            text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            self.send(f"data: {text}\n\n")

    def reset(self) -> None:
        """Break the connection as a killed process on another machine does: RST instead of an orderly end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def wait_closed(self) -> None:
        """Wait until the other side has closed the connection, and tell the test."""
        self.socket.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):
            if self.socket.recv(1):
                return
        self.server.closed.set()


Play = Callable[[Connection], None]


@dataclass
class FaultServer:
    """The server: its `url`, the `requests` that came; events say that one arrived, or closed a waiting stream."""

    url: str
    plays: list[Play] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    models: Any = field(default_factory=lambda: {"data": [{"id": "played"}]})
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def posts(self) -> list[Request]:
        """The requests that ask for an answer, without the looks at what the server is."""
        return [request for request in self.requests if request.method == "POST"]

    def take(self, request: Request) -> Play:
        with self._lock:
            self.requests.append(request)
            self.arrived.set()
            if request.method == "GET" and request.path.endswith("/v1/models") and self.models is not None:
                return answer(200, self.models)
            return self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        fault_server: FaultServer = self.server.fault_server  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionError, TimeoutError):
            request = _read(self.request)
            if request is not None:
                fault_server.take(request)(Connection(self.request, fault_server))


def _read(connection: socket.socket) -> Request | None:
    with connection.makefile("rb") as stream:
        first = stream.readline().decode().split()
        if not first:
            return None
        headers = {}
        while line := stream.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Request(first[0], first[1], headers, stream.read(int(headers.get("content-length", 0))))


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


@contextlib.contextmanager
def running() -> Iterator[FaultServer]:
    """A server for the length of a block."""
    with _Threads(("127.0.0.1", 0), _Handler) as server:
        fault_server = FaultServer(f"http://127.0.0.1:{server.server_address[1]}")
        server.fault_server = fault_server  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield fault_server
        finally:
            server.shutdown()
            thread.join()


def unused_url() -> str:
    """A URL where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def chunk(text: str = "", finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One event of a chat stream."""
    return {"choices": [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}], **more}


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def stream(*texts: str, finish: str | None = "stop", usage: dict[str, Any] | None = USAGE, done: bool = True) -> Play:
    """A stream as it should be, or one that lacks its finish reason, its token counts or its end mark."""

    def play(connection: Connection) -> None:
        connection.head()
        connection.events(*map(chunk, texts))
        if finish:
            connection.events(chunk(finish=finish))
        if usage:
            connection.events({"choices": [], "usage": usage})
        if done:
            connection.events("[DONE]")

    return play


def events(*said: Any) -> Play:
    """A stream of these events."""

    def play(connection: Connection) -> None:
        connection.head()
        connection.events(*said)

    return play


def raw(*texts: str | bytes) -> Play:
    """A stream of these bytes."""

    def play(connection: Connection) -> None:
        connection.head()
        connection.send(*texts)

    return play


def answer(status: int, body: Any, content_type: str = "application/json") -> Play:
    """A whole answer that is no stream: a string as it is, anything else as JSON."""
    content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()

    def play(connection: Connection) -> None:
        connection.head(status, content_type, content_length=len(content))
        connection.send(content)

    return play


def broken(*texts: str) -> Play:
    """A reset connection after these texts; without any, before the answer begins."""

    def play(connection: Connection) -> None:
        if texts:
            connection.head()
            connection.events(*map(chunk, texts))
        connection.reset()

    return play


def cut(*texts: str) -> Play:
    """An answer that promised more bytes than it sends."""

    def play(connection: Connection) -> None:
        connection.head(content_length=1_000_000)
        connection.events(*map(chunk, texts))

    return play


def silence(*texts: str) -> Play:
    """These texts, and then nothing until the other side gives up."""

    def play(connection: Connection) -> None:
        if texts:
            connection.head()
            connection.events(*map(chunk, texts))
        connection.wait_closed()

    return play


def pings(*texts: str) -> Play:
    """These texts, and then only comments that keep the connection alive; in the end a good end."""

    def play(connection: Connection) -> None:
        connection.head()
        connection.events(*map(chunk, texts))
        pause = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            connection.send(": ping\n\n")
            pause.wait(0.02)
        connection.events(chunk(finish="stop"), "[DONE]")

    return play
